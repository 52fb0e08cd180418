"""Figures are built from the package's own numbers; pages are self-contained, stable and escape
what a model wrote."""
import html.parser
import json
import re
import shutil
import subprocess
from types import SimpleNamespace

import pytest

pytest.importorskip("matplotlib").use("Agg")
import matplotlib.pyplot as plt
from PIL import Image

from calibrl import viz
from calibrl.files import asset_path
from calibrl.viz import stage

ASSETS = [*sorted(asset_path("viz").iterdir()), *sorted(asset_path("pages").iterdir())]


def same_numbers(page):
    "The table of frames inside the page"
    return json.loads(re.search(r"^const figure = (\{.*\});$", page, flags=re.M)[1])["frames"]


def test_gate_curve_is_the_gate():
    for alpha in (0., .5, 1.):
        assert viz.gate_curve([-1., 3.], True, alpha) == ([1., -3*alpha], [1., alpha])
        assert viz.gate_curve([-1., 3.], False, alpha) == ([-alpha, 3.], [-alpha, -1.])


@pytest.mark.parametrize("gap, times", [
    ("token", (1, 1, 1, 1, 1)),
    ("sequence", (4, 4, 4, 4, 8)),
    ("mean", (1, 1, 1, 1, 1))])
def test_the_coefficient_is_the_first_order_identity(gap, times):
    advantages = (.6, .6, -.4, -.4, -.4)
    for alpha, weight in ((.5, .1), (.3, 1.), (1., .7)):
        slopes = (1, alpha, 1, alpha, alpha)
        want = [A*(1 + weight*slope*n)
                for A, slope, n in zip(advantages, slopes, times, strict=True)]
        assert viz.gradient_coefficients(alpha, weight, gap) == pytest.approx(want, abs=1e-5)


def test_coefficients_of_a_group_of_ones_own():
    group = viz.toy_group()
    group["adv"] = -group["adv"]
    want = [-.6, -.6, .4, .4, .4]
    assert viz.gradient_coefficients(weight=0., group=group) == pytest.approx(want)


def plot_sequence(alpha):
    return viz.plot_alpha(alpha, .1, "sequence")


@pytest.mark.parametrize("make", [viz.plot_gate, viz.plot_push, viz.plot_alpha, plot_sequence])
@pytest.mark.parametrize("alpha", [0., .35, 1.])
def test_figures_draw_and_leave_nothing_behind(make, alpha, tmp_path):
    fig = make(alpha)
    assert isinstance(fig, plt.Figure) and plt.get_fignums() == []
    fig.savefig(tmp_path/"f.png")
    small = Image.open(tmp_path/"f.png").convert("RGB").resize((200, 80))
    assert len(set(small.getdata())) > 10


def test_alpha_moves_the_bars_but_not_the_axis():
    low, high = [viz.plot_alpha(alpha, 1.).axes[2] for alpha in (0., 1.)]
    heights = [[round(bar.get_height(), 3) for bar in ax.patches] for ax in (low, high)]
    assert heights[0] != heights[1] and low.get_ylim() == high.get_ylim()


def test_static_figure_holds_the_packages_numbers():
    frames = same_numbers(viz.alpha_figure_html())
    for w, weight in enumerate(viz.WEIGHTS):
        for a, alpha in enumerate(viz.ALPHAS):
            want = pytest.approx(viz.gradient_coefficients(alpha, weight), abs=1e-4)
            assert frames["push"][w][a] == want
    for a, alpha in enumerate(viz.ALPHAS):
        assert frames["gate"][a][0] == pytest.approx([2, 0, -2*alpha, 1, alpha], abs=1e-4)
    assert frames["grpo"] == pytest.approx(viz.gradient_coefficients(weight=0.), abs=1e-4)


def ids_of(page):
    return re.findall(r'\bid="([^"]+)"', page)


def test_static_figure_is_small_stable_offline_and_accessible():
    page = viz.alpha_figure_html()
    assert page == viz.alpha_figure_html() and len(page) < 20_000
    assert not re.search(r"https?:|@import|src=|url\(", page) and "\n\n" not in page
    ids = ids_of(page)
    assert len(ids) == len(set(ids)) and all(i.startswith("calibrl-alpha") for i in ids)
    assert not set(ids) & set(ids_of(viz.alpha_figure_html("other")))
    assert page.count("aria-label") >= 5 and "currentColor" in page and 'type="range"' in page


# A document of nothing but elements that remember what was set
DOCUMENT = """
const E = {};
const first = (id) => id.endsWith("-a") ? 10 : id.endsWith("-w") ? 2 : 0;
const made = (id) => ({
  value: first(id), at: {}, h: {},
  querySelectorAll: () => [],
  setAttribute(name, value) { this.at[name] = value },
  addEventListener(name, f) { this.h[name] = f },
});
global.document = { getElementById: (id) => E[id] || (E[id] = made(id)), addEventListener() {} };
global.window = { addEventListener() {} };
global.location = { hash: "" };
"""
MOVE = """
const e = (name) => E["calibrl-alpha-" + name];
const shown = () => [e("b1").at.height, e("n1").textContent, e("o").textContent];
const before = shown();
e("a").value = 0;
e("a").h.input();
console.log(JSON.stringify([before, [...shown(), e("g0").at.points]]));
"""


def node(code):
    "What a script prints."
    return subprocess.run(["node", "-e", code], capture_output=True, text=True, check=True).stdout


@pytest.mark.skipif(not shutil.which("node"), reason="needs node, to run a script alone")
def test_static_figure_script_runs():
    page = viz.alpha_figure_html()
    script = re.search(r"<script>(.*)</script>", page, re.S).group(1)
    before, after = json.loads(node(DOCUMENT + script + MOVE))
    assert before[:2] == [52.5, "+50%"] and after[:2] == [35, "+0%"]  # 70 px are 1.2: 0.9 and 0.6
    assert before[2].startswith("alpha 0.50") and after[2].startswith("alpha 0.00")
    assert after[3] == "30,25 130,95 230,95"


# ---- the files of the figures
@pytest.mark.parametrize("path", ASSETS, ids=lambda p: p.name)
def test_a_file_of_the_figures_can_be_read(path):
    lines = path.read_text(encoding="utf-8").splitlines()
    assert max(map(len, lines)) <= 100
    if path.suffix == ".js" and shutil.which("node"):
        subprocess.run(["node", "--check", path], check=True)
    if path.parent.name == "viz" and path.suffix in (".svg", ".html"):
        from xml.dom import minidom
        minidom.parse(str(path))


def test_data_cannot_end_the_script_or_begin_a_tag():
    attack = dict(text="</script><!--<script>", number=.5)
    shown = stage.script_json(attack)
    assert "<" not in shown and json.loads(shown) == attack


# ---- curves
def test_smooth():
    assert viz.smooth([1, 2, 3, 4, 5], 3) == [1, 1.5, 2, 3, 4]
    assert viz.smooth([]) == []


def test_curves_take_one_run_or_several():
    rows = [dict(step=t, accuracy=t/10, loss=None if t % 2 else .1, entropy=float("nan"),
                 method="x") for t in range(10)]
    shown = [ax for ax in viz.plot_curves(rows).axes if ax.get_visible()]
    titles = [ax.get_title() for ax in shown]
    assert titles == ["accuracy", "loss"]  # no number for entropy, reward, gap
    assert list(shown[1].lines[0].get_xdata()) == [0, 2, 4, 6, 8]
    fig = viz.plot_curves({"a": rows, "b": rows[:1]}, keys=("accuracy",))
    assert [text.get_text() for text in fig.axes[0].get_legend().get_texts()] == ["a", "b"]


def test_no_run_is_left_out_however_many_there_are():
    rows = [dict(step=1, accuracy=.5), dict(step=2, accuracy=.6)]
    fig = viz.plot_curves({f"run {i}": rows for i in range(70)}, keys=("accuracy",))
    assert len(fig.axes[0].get_legend().get_texts()) == 70
    bands = viz.plot_bands({"accuracy": {f"run {i}": [[.5, .6]] for i in range(70)}})
    assert len(bands.axes[0].lines) == 70


@pytest.mark.parametrize("rows", [[], {}, [dict(step=1)], {"a": []}])
def test_curves_without_numbers_say_so(rows):
    with pytest.raises(ValueError, match="^rows: "):
        viz.plot_curves(rows)


# ---- problems
def problem(i=0, **changed):
    white = Image.new("RGB", (84, 84), "white")
    plain = dict(question=f"What is $x_{i}$?", answer=str(i), images=(white,))
    return SimpleNamespace(**{**plain, **changed})


def test_problems_grid(tmp_path):
    path = tmp_path/"i.png"
    Image.new("RGB", (20, 20)).save(path)
    some = [problem(0), problem(1, images=()), problem(2, images=(str(path),)), problem(3),
            problem(4)]
    answers = ["$\\frac", ("1", True), dict(answer="9", correct=False), None, ("x", None)]
    fig = viz.plot_problems(some, answers)
    said = [ax.texts[0].get_text() for ax in fig.axes[:5]]
    assert said[0].endswith("\\$\\frac")
    assert said[1].endswith("(right)") and said[2].endswith("(wrong)")
    assert "model" not in said[3] and "(" not in said[4]
    fig.savefig(tmp_path/"f.png")  # model text like a broken formula does not stop the drawing


def test_problems_errors():
    with pytest.raises(ValueError, match="^problems: "):
        viz.plot_problems([])
    with pytest.raises(ValueError, match="^answers: "):
        viz.plot_problems([problem()], ["1", "2"])


# ---- report
class Tags(html.parser.HTMLParser):
    void = {"meta", "img", "br"}

    def __init__(self, page):
        super().__init__()
        self.open = []
        self.seen = []
        self.feed(page)

    def handle_starttag(self, tag, attrs):
        self.seen.append((tag, dict(attrs)))
        if tag not in self.void:
            self.open.append(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag


ATTACK = '</pre><script>alert(1)</script><img src=x onerror="alert(1)">'


def test_report_escapes_and_is_self_contained(tmp_path):
    path = tmp_path/"c.png"
    viz.plot_gate().savefig(path)
    tables = {ATTACK: [{ATTACK: ATTACK, "n": 1, "f": .12345}]}
    figures = {ATTACK: path, "fig": viz.plot_gate(), "bytes": path.read_bytes()}
    texts = {key: ATTACK for key in ("question", "response", "before", "expert", "answer")}
    wrong = dict(texts, correct=False, images=[Image.new("RGB", (9, 9))])
    samples = [wrong, dict(answer=3, correct=None)]
    page = viz.report_html(ATTACK, {ATTACK: ATTACK}, tables, figures, samples)

    tags = Tags(page)
    assert tags.open == [] and not any(tag == "script" for tag, _ in tags.seen)
    images = [attrs for tag, attrs in tags.seen if tag == "img"]
    assert len(images) == 4
    for attrs in images:
        assert set(attrs) == {"alt", "src"} and attrs["src"].startswith("data:image/")
    assert "0.123" in page and page.count("wrong</b>") == 1 and not re.search(r"https?:", page)


def test_report_is_stable_and_may_be_nearly_empty():
    pages = [viz.report_html("Run", "one sentence", figures={"gate": viz.plot_gate()})
             for _ in range(2)]
    assert pages[0] == pages[1] and "<p>one sentence</p>" in pages[0]
    assert Tags(viz.report_html("Run")).open == []
