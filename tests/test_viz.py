"Figures are built from the package's own numbers; pages are self-contained, stable and escape what a model wrote."
import html.parser, json, re, shutil, subprocess
from types import SimpleNamespace
import pytest
pytest.importorskip("matplotlib").use("Agg")
import matplotlib.pyplot as plt
from PIL import Image
from calibrl import viz


def same_numbers(page):
    "The table of frames inside the page"
    return json.loads(re.search(r"F=(\{.*?\}),A=", page).group(1))


def test_gate_curve_is_the_gate():
    for alpha in (0., .5, 1.):
        assert viz.gate_curve([-1., 3.], True, alpha) == ([1., -3*alpha], [1., alpha])
        assert viz.gate_curve([-1., 3.], False, alpha) == ([-alpha, 3.], [-alpha, -1.])


@pytest.mark.parametrize("gap,times", [("token", (1, 1, 1, 1, 1)), ("sequence", (4, 4, 4, 4, 8)), ("mean", (1, 1, 1, 1, 1))])
def test_push_is_the_first_order_identity(gap, times):
    for alpha, weight in ((.5, .1), (.3, 1.), (1., .7)):
        want = [a*(1 + weight*w*n) for a, w, n in zip((.6, .6, -.4, -.4, -.4), (1, alpha, 1, alpha, alpha), times)]
        assert viz.push(alpha, weight, gap) == pytest.approx(want, abs=1e-5)


def test_push_of_a_group_of_ones_own():
    g = viz.toy_group()
    g["adv"] = -g["adv"]
    assert viz.push(weight=0., group=g) == pytest.approx([-.6, -.6, .4, .4, .4])


@pytest.mark.parametrize("make", [viz.plot_gate, viz.plot_push, viz.plot_alpha, lambda a: viz.plot_alpha(a, .1, "sequence")])
@pytest.mark.parametrize("alpha", [0., .35, 1.])
def test_figures_draw_and_leave_nothing_behind(make, alpha, tmp_path):
    fig = make(alpha)
    assert isinstance(fig, plt.Figure) and plt.get_fignums() == []
    fig.savefig(tmp_path/"f.png")
    assert len(set(Image.open(tmp_path/"f.png").convert("RGB").resize((200, 80)).getdata())) > 10


def test_alpha_moves_the_bars_but_not_the_axis():
    bars = lambda f: [round(p.get_height(), 3) for p in f.axes[2].patches]
    low, high = viz.plot_alpha(0., 1.), viz.plot_alpha(1., 1.)
    assert bars(low) != bars(high) and low.axes[2].get_ylim() == high.axes[2].get_ylim()


def test_static_figure_holds_the_packages_numbers():
    page = viz.alpha_figure_html()
    frames = same_numbers(page)
    for w, weight in enumerate(viz.WEIGHTS):
        for a, alpha in enumerate(viz.ALPHAS): assert frames["push"][w][a] == pytest.approx(viz.push(alpha, weight), abs=1e-4)
    for a, alpha in enumerate(viz.ALPHAS): assert frames["gate"][a][0] == pytest.approx([2, 0, -2*alpha, 1, alpha], abs=1e-4)
    assert frames["grpo"] == pytest.approx(viz.push(weight=0.), abs=1e-4)


def test_static_figure_is_small_stable_offline_and_accessible():
    page = viz.alpha_figure_html()
    assert page == viz.alpha_figure_html() and len(page) < 20_000
    assert not re.search(r"https?:|@import|src=|url\(", page) and "\n\n" not in page
    ids = re.findall(r'\bid="([^"]+)"', page)
    assert len(ids) == len(set(ids)) and all(i.startswith("calibrl-alpha") for i in ids)
    assert not set(ids) & set(re.findall(r'\bid="([^"]+)"', viz.alpha_figure_html("other")))
    assert page.count("aria-label") >= 5 and "currentColor" in page and 'type="range"' in page


@pytest.mark.skipif(not shutil.which("node"), reason="needs node to run the page's script without a browser")
def test_static_figure_script_runs():
    page = viz.alpha_figure_html()
    script = re.search(r"<script>(.*)</script>", page, re.S).group(1)
    stub = """const E={};global.document={getElementById:k=>E[k]||(E[k]={value:k.endsWith('-a')?10:k.endsWith('-w')?2:0,at:{},h:{},
      setAttribute(n,v){this.at[n]=v},addEventListener(n,f){this.h[n]=f}})};"""
    out = "const e=k=>E['calibrl-alpha-'+k];const one=[e('b1').at.height,e('n1').textContent,e('o').textContent];e('a').value=0;e('a').h.input();"
    out += "console.log(JSON.stringify([one,[e('b1').at.height,e('n1').textContent,e('o').textContent,e('g0').at.points]]))"
    got = json.loads(subprocess.run(["node", "-e", stub+script+out], capture_output=True, text=True, check=True).stdout)
    assert got[0][:2] == [52.5, "+50%"] and got[1][:2] == [35, "+0%"]  # 70 px are 1.2: 0.9 and 0.6
    assert got[0][2].startswith("alpha 0.50") and got[1][2].startswith("alpha 0.00") and got[1][3] == "30,25 130,95 230,95"


# ---- curves
def test_smooth():
    assert viz.smooth([1, 2, 3, 4, 5], 3) == [1, 1.5, 2, 3, 4]
    assert viz.smooth([]) == []


def test_curves_take_one_run_or_several():
    rows = [dict(step=t, accuracy=t/10, loss=None if t % 2 else .1, entropy=float("nan"), method="x") for t in range(10)]
    fig = viz.plot_curves(rows)
    shown = [ax for ax in fig.axes if ax.get_visible()]
    assert [ax.get_title() for ax in shown] == ["accuracy", "loss"]  # no number for entropy, reward, gap
    assert list(shown[1].lines[0].get_xdata()) == [0, 2, 4, 6, 8]
    fig = viz.plot_curves({"a": rows, "b": rows[:1]}, keys=("accuracy",))
    assert [t.get_text() for t in fig.axes[0].get_legend().get_texts()] == ["a", "b"]


@pytest.mark.parametrize("rows", [[], {}, [dict(step=1)], {"a": []}])
def test_curves_without_numbers_say_so(rows):
    with pytest.raises(ValueError, match="^rows: "): viz.plot_curves(rows)


# ---- problems
def problem(i=0, **kw): return SimpleNamespace(**{**dict(question=f"What is $x_{i}$?", answer=str(i), images=(Image.new("RGB", (84, 84), "white"),)), **kw})


def test_problems_grid(tmp_path):
    path = tmp_path/"i.png"
    Image.new("RGB", (20, 20)).save(path)
    some = [problem(0), problem(1, images=()), problem(2, images=(str(path),)), problem(3), problem(4)]
    fig = viz.plot_problems(some, ["$\\frac", ("1", True), dict(answer="9", correct=False), None, ("x", None)])
    said = [ax.texts[0].get_text() for ax in fig.axes[:5]]
    assert said[0].endswith("\\$\\frac") and said[1].endswith("(right)") and said[2].endswith("(wrong)") and "model" not in said[3] and "(" not in said[4]
    fig.savefig(tmp_path/"f.png")  # model text that looks like a broken formula does not stop the drawing


def test_problems_errors():
    with pytest.raises(ValueError, match="^problems: "): viz.plot_problems([])
    with pytest.raises(ValueError, match="^answers: "): viz.plot_problems([problem()], ["1", "2"])


# ---- report
class Tags(html.parser.HTMLParser):
    void = {"meta", "img", "br"}
    def __init__(self, page):
        super().__init__()
        self.open, self.seen = [], []
        self.feed(page)
    def handle_starttag(self, tag, attrs):
        self.seen.append((tag, dict(attrs)))
        if tag not in self.void: self.open.append(tag)
    def handle_endtag(self, tag): assert self.open.pop() == tag


ATTACK = '</pre><script>alert(1)</script><img src=x onerror="alert(1)">'


def test_report_escapes_and_is_self_contained(tmp_path):
    path = tmp_path/"c.png"
    viz.plot_gate().savefig(path)
    page = viz.report_html(ATTACK, {ATTACK: ATTACK}, {ATTACK: [{ATTACK: ATTACK, "n": 1, "f": .12345}]}, {ATTACK: path, "fig": viz.plot_gate(), "bytes": path.read_bytes()},
        [dict(question=ATTACK, response=ATTACK, before=ATTACK, expert=ATTACK, answer=ATTACK, correct=False, images=[Image.new("RGB", (9, 9))]), dict(answer=3, correct=None)])
    tags = Tags(page)
    assert tags.open == [] and not any(t == "script" for t, _ in tags.seen)
    images = [a for t, a in tags.seen if t == "img"]
    assert len(images) == 4 and all(set(a) == {"alt", "src"} and a["src"].startswith("data:image/") for a in images)
    assert "0.123" in page and page.count("wrong</b>") == 1 and not re.search(r"https?:", page)


def test_report_is_stable_and_may_be_nearly_empty():
    make = lambda: viz.report_html("Run", "one sentence", figures={"gate": viz.plot_gate()})
    assert make() == make() and "<p>one sentence</p>" in make()
    assert Tags(viz.report_html("Run")).open == []
