"""pass@k against simulation, grading against the verifier, summaries against sums; files that
survive a kill, pages that no text can break."""
import json
import math
import os
import random
import re
import shutil
import signal
import subprocess
import sys
import time
from dataclasses import replace
from html.parser import HTMLParser

import pytest
import torch

import miniatures
from calibrl.cli import main
from calibrl.eval import (
    BENCHMARKS, benchmark_metrics, bootstrap, breakdowns, evaluate, from_lmms, grade,
    group_answers, interval, majority, mcnemar, paired, pass_at_k, published, read_answers,
    report_html, run_benchmark, summary, to_csv, to_lmms, wilson, write_results)
from calibrl.geometry import problems
from calibrl.tasks import Problem


def test_pass_at_k_is_what_drawing_k_answers_gives():
    rng = random.Random(0)
    for n, c, k in [(8, 1, 4), (8, 3, 2), (10, 5, 3), (6, 0, 6), (6, 6, 1)]:
        answers = [True]*c + [False]*(n - c)
        share = sum(any(rng.sample(answers, k)) for _ in range(20000))/20000
        assert pass_at_k(n, c, k) == pytest.approx(share, abs=0.015)
    for bad in [(4, 5, 1), (4, -1, 1), (4, 2, 5), (4, 2, 0)]:
        with pytest.raises(ValueError, match="1 <= k <= n"):
            pass_at_k(*bad)


def test_wilson_stays_inside_and_shrinks():
    assert wilson(0.0, 20)[0] == 0.0
    assert wilson(0.0, 20)[1] == pytest.approx(0.1611, abs=1e-4)
    assert wilson(1.0, 20) == pytest.approx((0.8389, 1.0), abs=1e-4)
    assert wilson(1.0, 20)[1] <= 1.0
    intervals = [wilson(0.4, n) for n in (10, 100, 1000)]
    widths = [high - low for low, high in intervals]
    assert widths == sorted(widths, reverse=True)
    assert wilson(0.5, 100) == pytest.approx((0.4038, 0.5962), abs=1e-4)      # a textbook value


def test_grading_is_the_verifiers():
    problem = problems(1, split="test")[0]
    graded = grade(problem, [problem.expert, f"<answer>{problem.answer}</answer>", "nothing"])
    assert graded["correct"] == [True, True, False]
    assert graded["formatted"] == [True, False, False]
    assert graded["answers"][2] is None
    assert graded["family"] == problem.tags["family"]
    assert graded["id"] == problem.id


def test_summary_adds_up():
    rows = [dict(family="a", k=2, correct=[True, False], formatted=[True, True], lengths=[2, 4],
                 truncated=[False, True]),
            dict(family="b", k=2, correct=[False, False], formatted=[True, False], lengths=[6, 8],
                 truncated=[False, False])]
    figures = {"n": 2, "accuracy": 0.25, "pass@2": 0.5, "formatted": 0.75, "length": 5.0,
               "truncated": 0.25}
    assert summary(rows).items() >= figures.items()
    families = summary(rows, by="family")
    assert {name: part["accuracy"] for name, part in families.items()} == {"a": 0.5, "b": 0.0}
    assert summary(rows, by="nothing") == {}
    with pytest.raises(ValueError, match="nothing was evaluated"):
        summary([])


def test_evaluate_greedy_and_sampled(policy):
    ps = problems(6, split="test")
    greedy = evaluate(policy, ps)
    assert greedy == evaluate(policy, ps, batch=4)                 # the batch decides nothing

    # the seed decides everything
    def sampled(seed):
        return evaluate(policy, ps, k=3, temperature=1.0, seed=seed)

    first = sampled(1)
    for name in ("responses", "correct", "lengths"):
        assert all(len(r[name]) == 3 for r in first)
    assert first == sampled(1) != sampled(2)

    assert all(evaluate(policy, ps, max_new_tokens=3)[0]["truncated"])
    with pytest.raises(ValueError, match="all the same"):
        evaluate(policy, ps, k=2)


def test_benchmarks_make_problems():
    for name in ("geometry_test", "geometry_hard"):
        assert len(BENCHMARKS[name](3)) == 3, name


def test_intervals_know_what_an_answer_is_worth():
    assert interval([1., 0., 1., 1.]) == wilson(.75, 4)

    # answers that hang together count once
    alike = interval([.5]*20, 8)
    apart = interval([0., 1.]*10, 8)
    assert apart == wilson(.5, 20)
    assert alike[1] - alike[0] <= apart[1] - apart[0]

    # spread as of independent answers: all count, no more
    assert interval([.25, .75, .5, .5]*5, 4) == pytest.approx(wilson(.5, 80), abs=1e-9)
    assert interval([0.]*5, 8) == wilson(0., 5)
    assert bootstrap([0.]*5)[0] < 0 < bootstrap([0.]*5)[1]


def test_mcnemar_against_all_outcomes():
    for n in range(1, 9):
        chances = [math.comb(n, i)/2**n for i in range(n + 1)]
        for c in range(n + 1):
            as_far = [p for i, p in enumerate(chances) if abs(i - n/2) >= abs(c - n/2)]
            assert mcnemar(n - c, c) == pytest.approx(min(1., sum(as_far)))


def row(i, right, name="b", **more):
    "A row of answers that are right or wrong."
    n = len(right)
    return dict(benchmark=name, index=i, id=str(i), question=f"q{i}", answer="1", k=n,
                correct=right, formatted=right, lengths=[1]*n, truncated=[False]*n,
                votes=[int(not r) for r in right], answers=["x"]*n, responses=["x"]*n) | more


def lost(i, name="b", why="no image"):
    "A row that could not be used."
    return dict(benchmark=name, index=i, error=why)


def test_paired_compares_what_both_answered():
    first = [row(i, [i < 5]) for i in range(10)]
    second = [row(i, [i in (0, 1, 2, 3, 5, 6, 7, 8)]) for i in range(9)] + [lost(9)]
    got = paired(first, second)
    assert (got["n"], got["only first"], got["only second"]) == (9, 1, 4)
    assert got["difference"] == pytest.approx(3/9)
    assert got["p"] == mcnemar(1, 4)
    assert got["interval"][0] < got["difference"] < got["interval"][1]

    # a run beside itself, several answers, and nothing in common
    same = paired(first, first)
    assert same["difference"] == 0 and same["p"] == 1 and same["interval"][1] > 0
    assert "p" not in paired([row(0, [True, False])], [row(0, [True, True])])
    with pytest.raises(ValueError, match="share no problem"):
        paired(first, [row(50, [True])])


def test_votes():
    assert majority(row(0, [True, True, False])) == 1
    assert majority(row(0, [False, False, True])) == 0
    nothing_true = [r"\\boxed{", "[" * 400, "[" * 400, "\x00", None]
    assert group_answers(nothing_true) == [0, 1, 1, 2, None]
    s = summary([row(0, [True, True, False]),
                 row(1, [False, False, True], greedy={"correct": True}), dict(error="x")])
    assert s["maj@3"] == .5 and s["n"] == 2 and "greedy" not in s


def test_figures_count_what_could_not_be_used():
    rows = [row(0, [True]), row(1, [False]), lost(2), lost(0, "c")]
    b, c = benchmark_metrics(rows)
    assert (b["n"], b["unusable"], b["accuracy"]) == (2, 1, .5)
    assert (c["n"], c["unusable"]) == (0, 1) and "accuracy" not in c
    assert to_csv([b, c]).count("\n") == 3
    assert report_html(rows, ".")

    # scores of its own that a set has
    rows = [row(i, [i != 3], "dynamath", group=str(i//2), level="x", answer_type="float")
            for i in range(4)]
    further = {"average": .75, "worst case": .5, "questions": 2}
    assert benchmark_metrics(rows)[0]["further"] == further
    assert breakdowns(rows)["dynamath: its own scores"]


def test_published_figures_stay_apart():
    rows = [row(i, [False], "geoqa") for i in range(3)]
    figure = {"published": "arXiv 2602.20197, Qwen2.5-VL-7B", "method": "CalibRL", "geoqa": .6074}
    assert published(["geoqa"])[-1] == figure
    assert published(["amc23"]) == []
    assert "60.7%" not in json.dumps(benchmark_metrics(rows))
    assert "60.7%" in report_html(rows)
    assert "Published by others, not measured here" in report_html(rows)


def test_a_file_cut_anywhere_is_completed_alike(policy, tmp_path):
    # short problems among long ones make several batches
    ps = problems(7, split="test")
    for i in (1, 2, 3, 4, 6):
        ps[i] = Problem("Find the area.", "1", images=ps[i].images, id=ps[i].id)
    how = dict(name="x", k=3, budget=500, seed=5, max_new_tokens=20)
    whole = run_benchmark(policy, ps, tmp_path/"a.jsonl", **how)
    text = (tmp_path/"a.jsonl").read_bytes()
    assert len({tuple(r["batch"]) for r in whole}) > 1
    assert all("greedy" in r for r in whole)

    # cut within the first row, after it, in the middle, before the last line's end
    for cut in (1, text.index(b"\n") + 1, len(text)//2, len(text) - 1):
        (tmp_path/"b.jsonl").write_bytes(text[:cut])
        assert run_benchmark(policy, ps, tmp_path/"b.jsonl", **how) == whole
        assert (tmp_path/"b.jsonl").read_bytes() == text

    # other settings need another file, another benchmark does not
    for other in (dict(k=2), dict(seed=6), dict(max_new_tokens=21), dict(lenient=True)):
        with pytest.raises(ValueError, match="give another folder"):
            run_benchmark(policy, ps, tmp_path/"a.jsonl", **how | other)
    rows = run_benchmark(policy, ps, tmp_path/"a.jsonl", **how | dict(name="y"))
    assert rows[0]["benchmark"] == "y"
    (tmp_path/"c.jsonl").write_text("{}\nnonsense\n")
    with pytest.raises(ValueError, match="line 2: no JSON"):
        read_answers(tmp_path/"c.jsonl")


class WithoutSecond(list):
    "Problems of which one cannot be used."
    def __getitem__(self, i):
        if i == 1:
            raise ValueError("x, row 1: no picture")
        return super().__getitem__(i)


def test_a_problem_that_cannot_be_used_stops_nothing(policy, checkpoint, tmp_path):
    from calibrl.rollout import Policy
    ps = WithoutSecond(problems(3, split="test"))
    rows = run_benchmark(policy, ps, tmp_path/"a.jsonl", "x")
    assert [r.get("error") for r in rows] == [None, "x, row 1: no picture", None]
    blind = Policy.from_pretrained(checkpoint("qwen2"), lora_rank=0)
    ps = [*problems(1, split="test"), Problem("1+1?", "2")]
    rows = run_benchmark(blind, ps, tmp_path/"b.jsonl", "x", max_new_tokens=3)
    assert "reads text only" in rows[0]["error"]
    assert rows[1]["truncated"] in ([True], [False])


HOSTILE = ("</pre></details><script>alert(1)</script><img src=x onerror=alert(2)>\" "
           "onmouseover=\"alert(3)' & <!--")


class Tags(HTMLParser):
    "The tags of a page, none of which may run code of its own."
    def __init__(self):
        super().__init__()
        self.found = []

    def handle_starttag(self, tag, attributes):
        self.found.append(tag)
        assert not [name for name, _ in attributes if name.startswith("on")], attributes


def test_no_text_can_break_the_page(tmp_path):
    bad = dict.fromkeys(("id", "question", "answer", "family"), HOSTILE)
    bad |= {name: [HOSTILE] for name in ("options", "responses", "answers", "how")}
    bad |= dict(rule="verifier", images=[HOSTILE, "../secret.png"])
    rows = [row(0, [False], HOSTILE) | bad,
            row(1, [True], "geometry_test") | bad,
            row(2, [True], "geometry_test", responses=["x"], answers=["x"], family="b"),
            lost(1, HOSTILE, HOSTILE)]
    (tmp_path/"secret.png").write_bytes(b"secret")
    (tmp_path/"run").mkdir()
    page = report_html(rows, tmp_path/"run", HOSTILE)
    tags = Tags()
    tags.feed(page)
    assert tags.found.count("script") == 1 and tags.found.count("article") == 4
    assert "img" not in tags.found and "http" not in page

    # as a file, in which the one script is ours
    table = write_results(rows, tmp_path/"run", HOSTILE)
    assert len(table) == 2
    page = (tmp_path/"run/report.html").read_text()
    assert "<script>" not in page.replace("<script>const", "")


@pytest.mark.parametrize("name", ["../../out", "a/b", "x"*101, "a\0b"])
def test_a_name_of_a_benchmark_leads_nowhere(tmp_path, name):
    rows = [row(0, [True], "fine"), row(0, [True], name)]
    with pytest.raises(ValueError, match="cannot be part of a file's name"):
        to_lmms(rows, tmp_path/"logs")
    assert list(tmp_path.iterdir()) == []


def test_lmms_logs_go_round_and_strange_ones_are_refused(policy, tmp_path):
    ps = problems(4, split="test")
    rows = run_benchmark(policy, ps, tmp_path/"a.jsonl", "geometry_test", k=2, greedy=False)
    file, = to_lmms([*rows, lost(9, "geometry_test")], tmp_path/"logs")
    assert file.name == "calibrl_samples_geometry_test.jsonl"
    back = from_lmms(file, ps, lenient=False, name="geometry_test")
    for key in ("correct", "answers", "responses", "lengths", "formatted"):
        assert [r[key] for r in back] == [r[key] for r in rows]

    # logs of other data, and logs without what is needed
    with pytest.raises(ValueError, match="belongs to other data"):
        from_lmms(file, [Problem("?", "-999")]*4)
    strange = tmp_path/"x.jsonl"
    for line, word in [({"doc_id": 0, "target": "1"}, "no responses"),
                       ({"target": "1", "filtered_resps": "1"}, "no doc_id")]:
        miniatures.jsonl(strange, [line])
        with pytest.raises(ValueError, match=word):
            from_lmms(strange)

    # a row of its own, and a row of more than there are
    line = {"doc_id": 7, "target": "C", "resps": [["first (A)", "The answer is C."]],
            "filtered_resps": ["C"], "input": "Which?"}
    miniatures.jsonl(strange, [line])
    assert from_lmms(strange)[0]["correct"] == [False, True]
    assert "error" in from_lmms(strange, ps)[0]


def test_a_log_is_judged_again_by_command(tmp_path, capsys):
    truths = [p.answer for p in BENCHMARKS["geometry_test"](3)]
    said = ["unknown", *truths[1:]]
    log = [{"doc_id": i, "target": truth, "filtered_resps": f"The answer is {answer}."}
           for i, (truth, answer) in enumerate(zip(truths, said, strict=True))]
    miniatures.jsonl(tmp_path/"log.jsonl", log)
    common = ["eval", "--rescore", str(tmp_path/"log.jsonl"), "--benchmarks"]
    assert main([*common, "geometry_test", "--out", str(tmp_path/"a")]) == 0
    assert "66.7%" in capsys.readouterr().out
    rows = read_answers(tmp_path/"a/answers.jsonl")
    assert [r["correct"] for r in rows] == [[False], [True], [True]]
    assert (tmp_path/"a/report.html").exists()

    for names, why in (("geometry_test,geometry_hard", "holds one benchmark"),
                       ("geometry_hard", "belongs to other data")):
        assert main([*common, names, "--out", str(tmp_path/names)]) == 2
        assert why in capsys.readouterr().err


@pytest.fixture(scope="module")
def minis(tmp_path_factory):
    return miniatures.make(tmp_path_factory.mktemp("minis"))


def test_the_whole_registry_in_one_command(minis, tmp_path, capsys):
    out = tmp_path/"all"
    small = ["--limit", "6", "--max-new-tokens", "12", "--bits", "4"]
    assert main(["eval", "--benchmarks", "all", *small, "--data-dir", str(minis), "--lmms",
                 "--out", str(out)]) == 0
    said = capsys.readouterr().out
    for word in ("dynamath: average", "wemath_testmini: strict", "report.html"):
        assert word in said

    # every set is in the answers and in the summary
    rows = read_answers(out/"answers.jsonl")
    table = json.loads((out/"summary.json").read_text())
    assert {r["benchmark"] for r in rows} == set(BENCHMARKS)
    assert [t["benchmark"] for t in table] == list(BENCHMARKS)
    assert all(t["n"] >= 2 for t in table)

    # and in each report, with the rule by which it is judged
    page = (out/"report.html").read_text()
    text = (out/"results.md").read_text()
    for word in ("an LLM extracts the answer", "by letter, as in lmms-eval",
                 "by value, as in EasyR1", "an LLM judge scores it"):
        assert word in page and word in text
    assert "## mathverse_testmini by problem_version" in text
    assert page.count("<article") == len(rows)
    assert len(list((out/"lmms-eval").glob("*.jsonl"))) == len(BENCHMARKS)
    assert (out/"results.csv").read_text().count("\n") == len(BENCHMARKS) + 1


def test_what_is_missing_is_said_and_the_rest_goes_on(minis, tmp_path, capsys):
    def evaluated(benchmarks, out, *more):
        small = ["--bits", "4", "--max-new-tokens", "8", "--limit", "2"]
        return main(["eval", *small, "--data-dir", str(minis), "--benchmarks", benchmarks,
                     "--out", str(tmp_path/out), *more])

    # one of two sets is not there
    (minis/"amc23.jsonl").rename(minis/"amc23.away")
    try:
        assert evaluated("amc23,geometry_test", "a") == 2
    finally:
        (minis/"amc23.away").rename(minis/"amc23.jsonl")
    err = capsys.readouterr().err
    assert "benchmark amc23: math-ai/amc23 cannot be read" in err
    assert "1 of 2 benchmarks could not be read" in err.splitlines()[-1]
    assert len(read_answers(tmp_path/"a/answers.jsonl")) == 2
    assert (tmp_path/"a/report.html").exists()

    # now it is there: the same folder is completed
    assert evaluated("geometry_test,amc23", "a") == 0
    assert len(read_answers(tmp_path/"a/answers.jsonl")) == 4
    assert evaluated("amc23", "a", "--seed", "1") == 2
    assert "seed was 0 and is 1 now" in capsys.readouterr().err
    assert evaluated("geometry_test", "b", "--against", str(tmp_path/"a")) == 0
    assert "Against the other run" in (tmp_path/"b/report.html").read_text()

    # a mistake leaves nothing behind
    for option, place, word in [("--data-dir", "/no/dir", "is no folder"),
                                ("--against", "/no/run", "no answers in")]:
        assert main(["eval", option, place, "--out", str(tmp_path/"c")]) == 2
        assert word in capsys.readouterr().err.splitlines()[-1]
    assert not (tmp_path/"c").exists()


def start_evaluation(out):
    "An evaluation in a process of its own."
    code = "import sys; from calibrl.cli import main; sys.exit(main())"
    how = ["--bits", "4", "--benchmarks", "geometry_test", "--limit", "40", "--k", "2",
           "--tokens", "700", "--out", str(out)]
    return subprocess.Popen([sys.executable, "-c", code, "eval", *how],
                            stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
                            env={**os.environ, "OMP_NUM_THREADS": "1"})


def test_a_killed_evaluation_goes_on_with_identical_results(tmp_path):
    cut, whole = tmp_path/"cut", tmp_path/"whole"
    killed = start_evaluation(cut)
    for _ in range(12_000):                     # ten minutes at most, where others are at work
        if len(read_answers(cut/"answers.jsonl")) >= 6:
            break
        assert killed.poll() is None
        time.sleep(.05)
    killed.send_signal(signal.SIGKILL)
    killed.wait()
    assert 6 <= len(read_answers(cut/"answers.jsonl")) < 40
    assert not (cut/"summary.json").exists()

    # go on with it, beside one that nobody killed
    both = start_evaluation(cut), start_evaluation(whole)
    assert [process.wait(300) for process in both] == [0, 0]
    for name in ("answers.jsonl", "summary.json", "results.md", "report.html"):
        assert (cut/name).read_bytes() == (whole/name).read_bytes(), name


def save_adapter(tiny, folder, size):
    "An adapter whose zero half is filled with `size`: another policy for another size."
    from calibrl.rollout import Policy
    policy = Policy.from_pretrained(tiny, lora_rank=4)
    with torch.no_grad():
        for name, weight in policy.model.named_parameters():
            if "lora_B" in name:
                weight.fill_(size)
    shutil.rmtree(folder, ignore_errors=True)
    policy.save(folder)
    return folder


def one_line(capsys):
    "The one line that a refused command says."
    lines = capsys.readouterr().err.strip().splitlines()
    assert "Traceback" not in "".join(lines), lines
    return lines[-1]


def asked_of(adapter, out):
    "The command line of a small evaluation."
    benchmarks = ["--benchmarks", "geometry_test", "--limit", "6"]
    return ["eval", *benchmarks, "--adapter", str(adapter), "--out", str(out)]


def test_a_replaced_adapter_gets_answers_of_its_own(tiny, tmp_path, capsys):
    "Not those that the folder holds, whole or half, of the one that had its name before."
    adapter = tmp_path/"adapter"
    out = tmp_path/"e"
    save_adapter(tiny, adapter, 0.)
    assert main(asked_of(adapter, out)) == 0
    first = (out/"answers.jsonl").read_bytes()
    save_adapter(tiny, adapter, .05)
    assert main(asked_of(adapter, tmp_path/"other")) == 0
    assert (tmp_path/"other/answers.jsonl").read_bytes() != first
    capsys.readouterr()

    # a finished evaluation and an interrupted one, each as it was
    half = b"".join(first.splitlines(True)[:3])
    for text in (first, half):
        (out/"answers.jsonl").write_bytes(text)
        assert main(asked_of(adapter, out)) == 2
        said = one_line(capsys)
        assert "adapter was" in said and "give another --out" in said
        assert (out/"answers.jsonl").read_bytes() == text


def test_an_adapter_that_only_moved_goes_on(tiny, tmp_path):
    "What counts is what it holds, not where it lies."
    out = tmp_path/"e"
    assert main(asked_of(save_adapter(tiny, tmp_path/"here", .05), out)) == 0
    whole = (out/"answers.jsonl").read_bytes()
    (tmp_path/"here").rename(tmp_path/"there")
    (out/"answers.jsonl").write_bytes(b"".join(whole.splitlines(True)[:2]))
    assert main(asked_of(tmp_path/"there", out)) == 0
    assert (out/"answers.jsonl").read_bytes() == whole


def test_a_folder_that_does_not_say_who_answered_is_not_gone_on_with(tiny, tmp_path, capsys):
    adapter = save_adapter(tiny, tmp_path/"adapter", 0.)
    out = tmp_path/"e"
    assert main(asked_of(adapter, out)) == 0
    about = json.loads((out/"eval.json").read_text())
    about.pop("policy", None)
    (out/"eval.json").write_text(json.dumps(about))
    capsys.readouterr()
    assert main(asked_of(adapter, out)) == 2
    said = one_line(capsys)
    assert "does not say which weights answered" in said and "give another --out" in said


def test_answers_to_other_rows_are_not_reused(minis, tmp_path, capsys):
    "A data file of the same name whose rows changed, or became more."
    lines = (minis/"amc23.jsonl").read_bytes().splitlines()
    rows = [json.loads(line) for line in lines]
    out = tmp_path/"e"

    def evaluated(rows):
        miniatures.jsonl(tmp_path/"data/amc23.jsonl", rows)
        return main(["eval", "--benchmarks", "amc23", "--data-dir", str(tmp_path/"data"),
                     "--max-new-tokens", "8", "--out", str(out)])

    assert evaluated(rows) == 0
    whole = (out/"answers.jsonl").read_bytes()
    assert evaluated(rows) == 0
    assert (out/"answers.jsonl").read_bytes() == whole
    capsys.readouterr()

    # another question, another answer, one row more
    for change in (dict(question="How much is 40 + 2?"), dict(answer=42.0)):
        assert evaluated([*rows[:-1], rows[-1] | change]) == 2
        said = one_line(capsys)
        assert f"row {len(rows) - 1} of amc23" in said and "give another folder" in said
    assert evaluated([*rows, rows[0]]) == 2
    assert f"rows was {len(rows)} and is {len(rows) + 1} now" in one_line(capsys)


def test_another_picture_is_another_problem(policy, tmp_path):
    from calibrl.geometry import blind
    first, second, third = problems(3, split="test")

    def evaluated(*asked):
        return run_benchmark(policy, asked, tmp_path/"a.jsonl", "x", max_new_tokens=8)

    whole = evaluated(first, second, third)
    assert evaluated(*problems(3, split="test")) == whole
    for other in (blind(second), replace(second, answer="-1"),
                  replace(second, options=("1", "2")), replace(second, expert="x")):
        with pytest.raises(ValueError, match="row 1 of x .* give another folder"):
            evaluated(first, other, third)

    # the same problems and another policy
    with torch.no_grad():
        policy.trainable[1].add_(1.)
    with pytest.raises(ValueError, match="adapter was .* give another folder"):
        evaluated(first, second, third)


def test_the_identity_of_a_policy_is_what_it_holds(tiny, tmp_path):
    "Its adapter's weights and their scale, and its base; not the name, the place or the precision."
    from calibrl.eval import identity
    from calibrl.rollout import Policy, export
    one = save_adapter(tiny, tmp_path/"one", .05)

    def loaded(folder=tiny, **how):
        return identity(Policy.from_pretrained(folder, **how))

    mine = loaded(adapter=one)
    shutil.copytree(tiny, tmp_path/"copy")
    assert mine == loaded(tmp_path/"copy", bits=4, adapter=one)
    assert loaded(lora_rank=0)["adapter"] is None != mine["adapter"]

    # the same matrices at another scale are another adapter
    config = json.loads((one/"adapter_config.json").read_text())
    (one/"adapter_config.json").write_text(json.dumps(config | {"lora_alpha": 99}))
    (one/"base.json").unlink()      # peft's own files have no checksums beside them
    assert loaded(adapter=one)["adapter"] != mine["adapter"]

    # merging an adapter leaves the embeddings and the last norm, which a fingerprint looks at
    for name, size in (("a", .05), ("b", .06)):
        adapter = save_adapter(tiny, tmp_path/"adapter", size)
        export(str(adapter), str(tmp_path/name), dtype="fp32")
    a, b = (loaded(tmp_path/name, lora_rank=0) for name in "ab")
    assert a["base"] == b["base"] == mine["base"]
    assert a["files"] != b["files"] != mine["files"]


STRANGE = "a\u2028b\u2029c\u0085d\x0be\x1cf\rg"      # where str.splitlines ends a line


def test_rows_end_at_newlines_alone(tmp_path):
    "Written by us or by others, a row with any character in it is read again."
    from calibrl.files import jsonl_line, read_jsonl
    rows = [{"a": STRANGE}, {"a": "\ud800"}, {"a": 1}]
    (tmp_path/"a.jsonl").write_bytes(b"".join(map(jsonl_line, rows)))
    assert read_jsonl(tmp_path/"a.jsonl") == rows
    assert len((tmp_path/"a.jsonl").read_text(encoding="utf-8").splitlines()) == 3

    # as others write it: not escaped, a mark at the front, Windows' line ends, no end of the last
    line = json.dumps({"a": STRANGE}, ensure_ascii=False)
    (tmp_path/"b.jsonl").write_bytes(f"\ufeff{line}\r\n\r\n{line}".encode())
    assert read_jsonl(tmp_path/"b.jsonl") == [rows[0]]*2
    for bad, word in ((b"[1]\n", "line 1: no JSON object"), (b"{}\n\xff\n", "line 2: no JSON")):
        (tmp_path/"c.jsonl").write_bytes(bad)
        with pytest.raises(ValueError, match=word):
            read_jsonl(tmp_path/"c.jsonl")


def test_answers_with_strange_line_ends_are_gone_on_with(policy, tmp_path):
    ps = [Problem(f"Say{STRANGE}{i}", "1", id=f"x{STRANGE}") for i in range(3)]
    whole = run_benchmark(policy, ps, tmp_path/"a.jsonl", "x", max_new_tokens=8)
    miniatures.jsonl(tmp_path/"a.jsonl", whole[:2])                  # as an older version wrote it
    assert run_benchmark(policy, ps, tmp_path/"a.jsonl", "x", max_new_tokens=8) == whole

    # and so are logs, in which the last line counts, too
    file, = to_lmms([r | {"responses": [STRANGE]} for r in whole], tmp_path/"logs")
    back = from_lmms(file, ps, name="x")
    assert [r["responses"] for r in back] == [[STRANGE]]*3
    (tmp_path/"log.jsonl").write_bytes(file.read_bytes().rstrip(b"\n"))
    assert len(from_lmms(tmp_path/"log.jsonl", ps, name="x")) == 3


@pytest.mark.browser
def test_the_report_filters_in_a_browser(policy, tmp_path):
    sync_playwright = pytest.importorskip("playwright.sync_api").sync_playwright
    found = map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))
    chromium = next(filter(None, found), None)
    if not chromium:
        pytest.skip("there is no Chromium")
    ps = problems(12, split="test")
    rows = run_benchmark(policy, ps, tmp_path/"a.jsonl", "geometry_test",
                         images=tmp_path/"images/geometry_test")
    report = tmp_path/"report.html"
    report.write_text(report_html([*rows, lost(0, "other", "lost")], tmp_path))

    with sync_playwright() as p:
        browser = p.chromium.launch(executable_path=chromium,
                                    args=["--no-sandbox", "--disable-gpu"])
        page = browser.new_page(viewport={"width": 390, "height": 844})
        asked = []
        page.on("request", lambda request: asked.append(request.url))
        page.goto(report.as_uri())

        def shown():
            return page.locator(".card:visible").count()

        # everything, the wrong first; then by verdict, by benchmark, by text
        assert shown() == 13
        assert page.locator(".card").first.get_attribute("data-v") == "wrong"
        page.select_option("#v", "wrong")
        assert shown() == sum(not all(r["correct"]) for r in rows)
        page.select_option("#v", "")
        page.select_option("#b", "other")
        assert shown() == 1
        page.select_option("#b", "")
        page.fill("#t", "perimeter")
        assert shown() == sum("perimeter" in problem.question for problem in ps)

        # on a telephone, and with nothing fetched
        assert page.evaluate("document.documentElement.scrollWidth <= innerWidth")
        assert all(url.startswith(("file:", "data:")) for url in asked)
        browser.close()


@pytest.mark.parametrize("text", [
    "<img src=x onerror=alert(1)>", "[here](javascript:alert(1))", "![x](http://a.b/c.png)",
    "<!-- <script>", "a | b", "`code`", "**strong**", "line\nbreak", "[a]: javascript:x"])
def test_a_text_of_anybodys_is_only_text_in_a_table(text):
    from calibrl.eval.tables import to_markdown
    shown = to_markdown([{text: text}])
    assert len(shown.splitlines()) == 3 and "<" not in shown
    assert not re.search(r"(?<!\\)[\[\]`*]", shown)
    assert all(len(re.findall(r"(?<!\\)\|", line)) == 2 for line in shown.splitlines())
