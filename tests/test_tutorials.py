"The figures of the tutorials: numbers are the package's, text is data, and wrong input is refused by name."
import json, re
from pathlib import Path
import pytest
pytest.importorskip("matplotlib").use("Agg")
import matplotlib.pyplot as plt
from calibrl import viz

ROOT = Path(__file__).resolve().parent.parent
RECORD = viz.read_group(ROOT/"nbs/records/group.json")


def data(page):
    "The numbers inside a movable figure."
    return json.loads(re.search(r"F=(\{.*?\}),K=\{", page, flags=re.S).group(1).replace("<\\/", "</"))


def test_every_knob_of_the_group_shows_the_packages_push():
    frames = data(viz.group_figure_html(RECORD))
    for g, gap in enumerate(viz.GAPS):
        for right in (1, 4, 7):
            for s, sure in enumerate((None, *viz.SURES)):
                _, group = viz.mix_group(RECORD, right, sure=sure)
                for alpha, weight in ((0., 1.), (.35, .3), (1., .1)):
                    shown = [p + weight*(f + alpha*part) for p, f, part in frames["parts"][g][right][s]]
                    assert shown == pytest.approx(viz.push(alpha, weight, gap, group), abs=5e-3)
                assert frames["D"][g][right][s] == pytest.approx([d for d, *_ in viz.stand(group, gap=gap)], abs=1e-3)


def test_the_table_figure_shows_the_packages_runs():
    frames = data(viz.table_figure_html(steps=12, every=3))
    run = viz.table_run(viz.TABLE_ALPHAS[2], viz.TABLE_WEIGHTS[1], viz.TABLE_GAPS[0], steps=12)
    assert frames["runs"][0][1][2] == [[round(r[k], 3) for r in run[::3]] for k in ("accuracy", "entropy", "kinds")]


@pytest.mark.parametrize("page", [viz.group_figure_html(RECORD), viz.table_figure_html(steps=2), viz.alpha_svg()], ids=["group", "table", "svg"])
def test_moving_figures_ask_nothing_of_the_network(page):
    assert not re.search(r"(?<!xmlns=\")https?:|@import|\ssrc=|url\(", page)
    ids = re.findall(r'\bid="([^"]+)"', page)
    assert len(ids) == len(set(ids)) and "\n\n" not in page


def test_model_text_stays_text():
    attack = dict(RECORD, texts=['</script><script>alert(1)</script><img src=x onerror="alert(1)">'] + RECORD["texts"][1:])
    page = viz.group_figure_html(attack)
    assert page.count("</script>") == 1 and "<img" not in page.split("<script>")[0]


def test_the_readme_picture_is_what_the_package_draws():
    assert (ROOT/"nbs/images/alpha.svg").read_text(encoding="utf-8") == viz.alpha_svg()


def test_composition():
    for right in range(9): assert int(viz.mix_group(RECORD, right)[1]["correct"].sum()) == right
    for right in (-1, 9): 
        with pytest.raises(ValueError, match="^right: "): viz.mix_group(RECORD, right)
    with pytest.raises(ValueError, match="^sure: "): viz.mix_group(RECORD, sure=1.)
    assert isinstance(viz.plot_group(RECORD, right=0), plt.Figure) and plt.get_fignums() == []


def test_a_record_that_is_none_is_refused(tmp_path):
    with pytest.raises(FileNotFoundError, match="no recorded group"): viz.read_group(tmp_path/"no.json")
    (tmp_path/"a.json").write_text("{}")
    with pytest.raises(ValueError, match="'question' is missing"): viz.read_group(tmp_path/"a.json")
    (tmp_path/"b.json").write_text(json.dumps(dict(RECORD, texts=[])))
    with pytest.raises(ValueError, match="different lengths"): viz.read_group(tmp_path/"b.json")


def test_a_closed_gate_keeps_more_right_answers_at_equal_accuracy():
    "On worlds other than the one shown."
    for seed in (1, 2):
        kinds = [viz.at_accuracy(viz.table_run(a, steps=160, seed=seed))["kinds"] for a in (0., 1.)]
        plain = viz.at_accuracy(viz.table_run(weight=0., steps=160, seed=seed))
        assert plain["accuracy"] >= .8 and kinds[0] > 1.1*plain["kinds"] and kinds[0] > kinds[1]


def saved(name):
    "All that the cells of a page have printed."
    cells = json.loads((ROOT/f"nbs/pages/{name}.ipynb").read_text(encoding="utf-8"))["cells"]
    return "".join("".join(out.get("text", [])) for cell in cells for out in cell.get("outputs", []))


def test_the_page_on_performance_shows_the_record_as_it_is():
    shown = saved("performance")
    for r in json.loads((ROOT/"benchmarks/bench.json").read_text()): assert re.search(rf"{re.escape(r['name'])} +{r['ratio']:.1f}x", shown), "run nbs/pages/performance.ipynb again: benchmarks/bench.json has changed"


def test_the_page_of_results_shows_the_record_as_it_is():
    from calibrl.cli import table
    assert table(json.loads((ROOT/"nbs/records/demo/summary.json").read_text())["figures"]) in saved("results"), "run nbs/pages/results.ipynb again: the record has changed"


def commands():
    "The lines of the tutorials that are meant for a shell."
    for path in sorted((ROOT/"nbs/tutorials").glob("*.ipynb")):
        for cell in json.loads(path.read_text(encoding="utf-8"))["cells"]:
            yield from re.findall(r"^!calibrl (.+)$", "".join(cell["source"]), flags=re.M)


@pytest.mark.parametrize("line", list(commands()))
def test_the_commands_for_a_large_model_have_options_that_exist(line):
    import shlex
    from calibrl.cli import COMMANDS, make_parser
    words = shlex.split(line)
    name = next(n for n in (" ".join(words[:2]), words[0]) if n in COMMANDS)
    make_parser(name).parse_args(words[len(name.split()):])
