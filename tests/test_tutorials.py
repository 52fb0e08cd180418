"""The figures of the tutorials: numbers are the package's, text is data, and wrong input is
refused by name."""
import itertools
import json
import re
import shlex
from pathlib import Path

import pytest

pytest.importorskip("matplotlib").use("Agg")
import matplotlib.pyplot as plt

from calibrl import viz
from calibrl.cli import COMMANDS, main, read_options

ROOT = Path(__file__).resolve().parent.parent
RECORD = viz.read_group(ROOT/"nbs/records/group.json")


def data(page):
    "The numbers inside a movable figure."
    call = re.search(r"^const figure = (\{.*\});$", page, flags=re.M)
    return json.loads(call[1])["frames"]


def push_at(parts, alpha, weight):
    "The push of each answer at a position of the sliders, as the page sums it."
    return [plain + weight*(full + alpha*gated) for plain, full, gated in parts]


def test_every_knob_of_the_group_shows_the_packages_push():
    frames = data(viz.group_figure_html(RECORD))
    knobs = itertools.product(enumerate(viz.GAPS), (1, 4, 7), enumerate((None, *viz.SURES)))
    for (g, gap), right, (s, sure) in knobs:
        _, group = viz.mix_group(RECORD, right, sure=sure)
        for alpha, weight in ((0., 1.), (.35, .3), (1., .1)):
            shown = push_at(frames["parts"][g][right][s], alpha, weight)
            want = viz.gradient_coefficients(alpha, weight, gap, group)
            assert shown == pytest.approx(want, abs=5e-3)
        gaps = [spot.gap for spot in viz.gate_positions(group, gap=gap)]
        assert frames["D"][g][right][s] == pytest.approx(gaps, abs=1e-3)


def test_the_table_figure_shows_the_packages_runs():
    frames = data(viz.table_figure_html(steps=12, every=3))
    alpha, weight, gap = viz.TABLE_ALPHAS[2], viz.TABLE_WEIGHTS[1], viz.TABLE_GAPS[0]
    for seed, grid, grpo in zip(viz.TABLE_SEEDS, frames["runs"], frames["grpo"], strict=True):
        run = viz.table_run(alpha, weight, gap, steps=12, seed=seed)[::3]
        plain = viz.table_run(weight=0., steps=12, seed=seed)[::3]
        keys = ("accuracy", "entropy", "kinds")
        for ours, theirs, key in zip(grid[0][1][2], grpo, keys, strict=True):
            assert ours == [round(row[key], 3) for row in run]
            assert theirs == [round(row[key], 3) for row in plain]


MOVING = {"group": viz.group_figure_html(RECORD), "table": viz.table_figure_html(steps=2),
          "svg": viz.alpha_svg()}


@pytest.mark.parametrize("name", MOVING)
def test_moving_figures_ask_nothing_of_the_network(name):
    page = MOVING[name]
    assert not re.search(r"(?<!xmlns=\")https?:|@import|\ssrc=|url\(", page)
    ids = re.findall(r'\bid="([^"]+)"', page)
    assert len(ids) == len(set(ids)) and "\n\n" not in page


def test_model_text_stays_text():
    text = '</script><script>alert(1)</script><img src=x onerror="alert(1)">'
    page = viz.group_figure_html(dict(RECORD, texts=[text] + RECORD["texts"][1:]))
    assert page.count("</script>") == 1 and "<img" not in page.split("<script>")[0]


def test_the_readme_picture_is_what_the_package_draws():
    assert (ROOT/"nbs/images/alpha.svg").read_text(encoding="utf-8") == viz.alpha_svg()


def test_composition():
    for right in range(9):
        assert int(viz.mix_group(RECORD, right)[1]["correct"].sum()) == right
    for right in (-1, 9):
        with pytest.raises(ValueError, match="^right: "):
            viz.mix_group(RECORD, right)
    with pytest.raises(ValueError, match="^sure: "):
        viz.mix_group(RECORD, sure=1.)
    assert isinstance(viz.plot_group(RECORD, right=0), plt.Figure) and plt.get_fignums() == []


def test_the_legend_names_only_the_answers_that_are_there():
    legend = viz.plot_group(RECORD, right=0).axes[0].get_legend()
    assert [text.get_text() for text in legend.get_texts()] == ["wrong answers"]


def test_a_record_that_is_none_is_refused(tmp_path):
    with pytest.raises(FileNotFoundError, match="no recorded group"):
        viz.read_group(tmp_path/"no.json")
    (tmp_path/"a.json").write_text("{}")
    with pytest.raises(ValueError, match="'question' is missing"):
        viz.read_group(tmp_path/"a.json")
    (tmp_path/"b.json").write_text(json.dumps(dict(RECORD, texts=[])))
    with pytest.raises(ValueError, match="different lengths"):
        viz.read_group(tmp_path/"b.json")


def reached(*, seed, **options):
    "The row of a run at which it is first good."
    return viz.at_accuracy(viz.table_run(steps=160, seed=seed, **options))


def test_a_closed_gate_keeps_more_right_answers_at_equal_accuracy():
    "On worlds other than the one shown."
    for seed in (1, 2):
        closed = reached(alpha=0., seed=seed)["kinds"]
        opened = reached(alpha=1., seed=seed)["kinds"]
        plain = reached(weight=0., seed=seed)
        assert plain["accuracy"] >= .8 and closed > 1.1*plain["kinds"] and closed > opened


def saved(name):
    "All that the cells of a page have printed."
    cells = json.loads((ROOT/f"nbs/pages/{name}.ipynb").read_text(encoding="utf-8"))["cells"]
    outputs = [out for cell in cells for out in cell.get("outputs", [])]
    return "".join("".join(out.get("text", [])) for out in outputs)


def test_the_page_on_performance_shows_the_record_as_it_is():
    shown = saved("performance")
    again = "run nbs/pages/performance.ipynb again: benchmarks/bench.json has changed"
    for row in json.loads((ROOT/"benchmarks/bench.json").read_text()):
        line = rf"{re.escape(row['name'])} +{row['ratio']:.1f}x"
        assert re.search(line, shown), again


def test_the_page_of_results_shows_the_record_as_it_is():
    from calibrl.cli import table
    record = json.loads((ROOT/"nbs/records/demo/summary.json").read_text())
    again = "run nbs/pages/results.ipynb again: the record has changed"
    assert table(record["figures"]) in saved("results"), again


def test_the_page_on_performance_shows_what_the_gpu_gave():
    gpu = json.loads((ROOT/"benchmarks/gpu.json").read_text())
    shown = saved("performance")
    for r in gpu["memory_gib"]:
        assert f"{r['planned']:.2f} GiB planned, {r['measured']:.2f} measured" in shown
    assert gpu["machine"] in shown and gpu["model"] in shown


PAGES = [*sorted((ROOT/"nbs").glob("*.md")), *sorted((ROOT/"nbs/pages").glob("*.md")),
         *sorted((ROOT/"nbs/pages").glob("*.ipynb")),
         *sorted((ROOT/"nbs/tutorials").glob("*.ipynb")),
         ROOT/"nbs/index.ipynb", ROOT/"README.md", ROOT/"CONTRIBUTING.md"]


def texts(path):
    "The text of a page, or of its cells, each with whether all of it is code."
    text = path.read_text(encoding="utf-8")
    if path.suffix == ".md":
        return [(text, False)]
    return [("".join(cell["source"]), cell["cell_type"] == "code")
            for cell in json.loads(text)["cells"]]


def commands():
    "The commands of first page, tutorials and pages: lines for a shell, and those amid the text."
    for path in PAGES:
        for text, is_code in texts(path):
            text = text.replace("\\\n", " ")
            blocks = [text] if is_code else re.findall(r"^```\w*\n(.*?)^```", text, re.M | re.S)
            for block in blocks:
                yield from re.findall(r"^ *!?(?:uv run )?calibrl (.+)$", block, flags=re.M)
            yield from re.findall(r"`calibrl ([^`\n]* --[^`\n]*)`", text)


def split(line):
    "The command of a line, and its other words."
    words = shlex.split(line, comments=True)
    name = next(n for n in (" ".join(words[:2]), words[0]) if n in COMMANDS)
    return name, words[len(name.split()):]


COMMAND_LINES = list(dict.fromkeys(commands()))
# What TRL needs of a cluster's cards is not planned
LARGE = [line for line in COMMAND_LINES if "7B" in line and split(line)[0] in ("plan", "train")
         and "--engine trl" not in line]


@pytest.mark.parametrize("line", COMMAND_LINES)
def test_the_commands_have_options_that_exist(line):
    name, words = split(line)
    read_options(name, words)


@pytest.mark.parametrize("line", LARGE)
def test_the_large_commands_fit_on_the_card_they_name(line, capsys):
    name, words = split(line)
    gpu = ["--gpu", "24GB"] if name == "train" else []
    named = name == "plan" or "--max-prompt-tokens" in words
    assert named, "without --max-prompt-tokens no plan can hold"
    assert main(["plan", *words, *gpu]) == 0
    assert "  fits; " in capsys.readouterr().out


def test_the_pages_hold_such_commands():
    names = {split(line)[0] for line in LARGE}
    assert names == {"plan", "train"} and len(COMMAND_LINES) > 10
