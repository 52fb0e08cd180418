"""The command as a user meets it: files left behind, one clear line for mistakes, the same seed
twice."""
import json

import pytest

from calibrl.cli import COMMANDS, main


def test_help_and_version(capsys):
    assert main(["help"]) == 0 and "calibrl demo" in capsys.readouterr().out
    assert main(["--version"]) == 0 and capsys.readouterr().out.startswith("calibrl 0.")
    for name in COMMANDS:
        assert main([*name.split(), "--help"]) == 0
        text = " ".join(capsys.readouterr().out.split())
        assert COMMANDS[name].__doc__.split(";")[0][:40] in text
        assert "--out" in text or name in ("report", "plan", "data check", "ask")
    assert main(["train", "--help"]) == 0 and "--lora-rank" in capsys.readouterr().out


def test_the_check_of_the_embedded_world_says_its_name(capsys):
    assert main(["data", "check", "geometry", "--limit", "2"]) == 0
    assert capsys.readouterr().out.startswith("geometry: columns, 2 problems of ")


@pytest.mark.parametrize("line, word", [
    ("trian", "no command 'trian': did you mean train?"),
    ("data", "no command 'data'"),
    ("train --gap tokens", "gap must be one of"),
    ("train --alpha x", "invalid float value"),
    ("train --nope", "no option --nope"),
    ("train --alhpa=0.3", "did you mean --alpha?"),
    ("train rows.jsonl", "'rows.jsonl' belongs to no option"),
    ("train --out", "--out: expected one argument"),
    ("report --run a", "calibrl report RUN"),
    ("report", "required: run"),
    ("ask", "required: question"),
    ("ask What is x?", "no picture at 'What'"),
    ("train --method ppo", "method must be one of"),
    ("train --model /no/model", "no model at"),
    ("train --config /no/c.toml", "no configuration at"),
    ("train --bits 3", "bits must be"),
    ("train --engine rows", "engine must be one of calibrl, trl"),
    ("train --engine trl --method luffy", "--method luffy does not go with --engine trl"),
    ("train --engine trl --sample-prompts 4", "--sample-prompts 4 does not go with --engine trl"),
    ("plan --engine trl --rows packed", "--rows packed does not go with --engine trl"),
    ("train --adapter /no/run", "no adapter in"),
    ("eval --adapter /no/run", "no adapter in"),
    ("eval --benchmarks geo", "benchmark geo is unknown"),
    ("eval --limit 0", "--limit must be a whole number from 1"),
    ("demo --steps -1", "steps must be")])
def test_mistakes_get_one_line_and_exit_code_2(line, word, capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert main(line.split()) == 2
    err = capsys.readouterr().err.strip()
    assert word in err and len(err.splitlines()) == 1
    assert not (tmp_path/"runs").exists()                # a refused command leaves nothing behind


def rows(path):
    return [json.loads(line) for line in path.read_text().splitlines()]


def metrics(folder):
    "The metrics of a run without the clock."
    found = rows(folder/"metrics.jsonl")
    return [{k: v for k, v in r.items() if k != "seconds"} for r in found]


def test_train_then_eval(tmp_path, capsys):
    first = tmp_path/"a"
    common = ["train", "--bits", "4", "--steps", "2", "--prompts", "4", "--responses", "4"]
    assert main([*common, "--seed", "1", "--out", str(first)]) == 0
    left = {p.name for p in first.iterdir()}
    assert {"config.toml", "metrics.jsonl", "curves.png", "adapter"} <= left
    again = ["--config", str(first/"config.toml"), "--out", str(tmp_path/"b")]
    assert main([*common, *again]) == 0
    assert main([*common, "--seed", "2", "--out", str(tmp_path/"c")]) == 0
    a, b, c = (metrics(tmp_path/name) for name in "abc")
    assert len(a) == 2 and a == b != c
    assert main(["train", "--out", str(first), "--steps", "1"]) == 2
    assert "steps was 2 and is 1 now" in capsys.readouterr().err

    # the run is examined
    exam = ["eval", "--adapter", str(first), "--bits", "4", "--limit", "4", "--k", "2"]
    assert main([*exam, "--out", str(tmp_path/"e")]) == 0
    assert "geometry_hard" in capsys.readouterr().out
    graded = rows(tmp_path/"e/answers.jsonl")
    assert len(graded) == 8
    assert {r["benchmark"] for r in graded} == {"geometry_test", "geometry_hard"}
    summary = json.loads((tmp_path/"e/summary.json").read_text())
    shares = {f["benchmark"]: f["accuracy"] for f in summary}
    assert shares["geometry_test"] == sum(sum(r["correct"]) for r in graded[:4])/8

    # asked, and written out with a card; the merged folder answers as the run does
    picture = tmp_path/"e/images/geometry_test/0-0.jpg"
    question = [str(picture), graded[0]["question"]]
    assert main(["ask", *question, "--adapter", str(first)]) == 0
    said = capsys.readouterr()
    assert said.out.startswith("<think>") and "max_new_tokens 64" in said.err
    out = tmp_path/"merged"
    assert main(["export", str(first), "--out", str(out), "--dtype", "fp32"]) == 0
    assert f"vllm serve {out}" in capsys.readouterr().out
    card = (out/"README.md").read_text()
    assert "| method | calibrl, alpha 0.5" in card and "| steps | 2 of 2" in card
    assert main(["ask", *question, "--model", str(out), "--max-new-tokens", "64"]) == 0
    assert capsys.readouterr().out.startswith("<think>")

    # what cannot be read of the run is said before anything is merged
    (first/"metrics.jsonl").write_text("no row\n")
    assert main(["export", str(first), "--out", str(tmp_path/"again")]) == 2
    assert "metrics.jsonl" in capsys.readouterr().err and not (tmp_path/"again").exists()


def test_demo_leaves_everything_to_look_at(tmp_path, capsys):
    assert main(["demo", "--quick", "--steps", "3", "--out", str(tmp_path/"demo")]) == 0
    out = capsys.readouterr().out
    words = ("before", "after", "test: greedy accuracy", "hard: pass@4", "blank pictures",
             "Entropy", "beside GRPO", "1 steps each", "report.html", "Next:")
    for word in words:
        assert word in out
    from calibrl.geometry import tiny_checkpoint
    from calibrl.rollout import Policy
    full = Policy.from_pretrained(tiny_checkpoint(), lora_rank=0).model
    assert f"of {sum(w.numel() for w in full.parameters()):,} parameters in 4 bits" in out
    left = {p.name for p in (tmp_path/"demo").iterdir()}
    assert {"config.toml", "metrics.jsonl", "curves.png", "samples.png", "report.html",
            "answers.jsonl", "adapter", "dial.png"} <= left
    page = (tmp_path/"demo/report.html").read_text()
    assert page.count("data:image/png") >= 6 and "not the paper" in page
    assert "http://" not in page and "https://" not in page


def test_report_of_a_run(tmp_path, capsys):
    run = tmp_path/"run"
    few = ["--steps", "1", "--prompts", "2", "--responses", "2", "--max-new-tokens", "8"]
    assert main(["train", *few, "--out", str(run)]) == 0
    (run/"report.html").unlink()
    (run/"summary.json").unlink()
    assert main(["report", str(run)]) == 0 and capsys.readouterr().out.endswith("report.html\n")
    assert "1 of 1" in (run/"report.html").read_text()
    assert main(["report", str(tmp_path)]) == 2 and "no run in" in capsys.readouterr().err
