"""A reward of one's own, from the command line: it judges training and evaluation, is run apart,
and fails without ending a run."""
import os

import pytest

from calibrl.cli import main
from calibrl.files import read_jsonl
from calibrl.own_reward import OwnReward
from calibrl.tasks import Problem, Score

SMALL = ["--bits", "4", "--steps", "2", "--prompts", "2", "--responses", "4",
         "--mini-batches", "1", "--val", "0.5"]
# right where the verifier says right; hard problems pay more; some responses make it fail
OURS = """
import os

def reward(response, answer, level, **columns):
    number = response.count("a")
    if number % 3 == 1:
        raise KeyError("no such thing")
    if number % 3 == 2 and "=" in response and columns["id"] == "nobody":
        os._exit(1)
    right = response.rstrip().endswith(f"<answer>{answer}</answer>")
    return right, right*(2.5 if level else 1.)
"""


@pytest.fixture
def file(tmp_path):
    "A file with a reward function."
    path = tmp_path/"ours.py"
    path.write_text(OURS)
    return path


def test_training_and_evaluation_are_judged_by_it(file, tmp_path, capsys):
    out = tmp_path/"run"
    argv = ["train", *SMALL, "--reward", f"{file}:reward", "--out", str(out)]
    assert main(argv) == 0
    said = capsys.readouterr()
    rows = read_jsonl(out/"metrics.jsonl")
    failed = sum(row["reward_failures"] for row in rows)
    assert failed and f"the reward failed on {failed} responses" in said.out

    # what it paid is what was trained on, and its failures paid nothing
    for sample in read_jsonl(out/"samples.jsonl"):
        fails = sample["response"].count("a") % 3 == 1
        right = sample["response"].endswith(f"<answer>{sample['answer']}</answer>") and not fails
        assert sample["correct"] == right and sample["reward"] == 2.5*right

    # the same judge serves validation
    for row in read_jsonl(out/"validation/step-2.jsonl"):
        assert row["how"][0].startswith("reward: ")
    assert f"--reward {file}:reward" in said.out.splitlines()[-1]

    # and an evaluation
    graded = tmp_path/"eval"
    argv = ["eval", "--adapter", str(out), "--bits", "4", "--benchmarks", "geometry_test",
            "--limit", "6", "--out", str(graded), "--reward", f"{file}:reward"]
    assert main(argv) == 0
    for row in read_jsonl(graded/"answers.jsonl"):
        assert row["how"][0].startswith("reward: ")
        fails = row["responses"][0].count("a") % 3 == 1
        right = row["responses"][0].endswith(f"<answer>{row['answer']}</answer>") and not fails
        assert row["correct"] == [right]
    capsys.readouterr()

    # one that reads otherwise now is refused by name, in a run and in an evaluation
    (out/"summary.json").unlink()
    file.write_text(OURS + "\n# changed\n")
    assert main(argv) == 2 and "reward was" in capsys.readouterr().err
    argv = ["train", *SMALL, "--reward", f"{file}:reward", "--out", str(out)]
    assert main(argv) == 2 and "reward was" in capsys.readouterr().err
    assert main([*argv[:-4], "--out", str(out)]) == 2
    assert "reward was" in capsys.readouterr().err


@pytest.mark.parametrize("source, name, words", [
    ("def f(response, answer):\n    return 0.7", "f", "a number alone does not say"),
    ("def f(response, answer):\n    return 'yes'", "f", "return True or False"),
    ("def f(response):\n    return True", "f", "TypeError"),
    ("def f(response, answer):\n    return answer.nothing", "f", "AttributeError"),
    ("def f(response, answer):\n    return True", "g", "no function 'g'"),
    ("import nowhere_at_all", "f", "ModuleNotFoundError"),
    ("def f(:", "f", "SyntaxError")])
def test_one_that_cannot_serve_is_refused_before_anything_is_loaded(source, name, words, tmp_path,
                                                                   capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path/"ours.py").write_text(source)
    assert main(["train", *SMALL, "--reward", f"ours.py:{name}"]) == 2
    error = capsys.readouterr().err
    assert words in error and len(error.splitlines()) == 1
    assert not (tmp_path/"runs").exists()


@pytest.mark.parametrize("where, words", [
    ("ours.py", "FILE.py:FUNCTION"), ("nowhere.py:f", "no file at"), ("a.py:", "FILE.py:FUNCTION")])
def test_a_reward_that_is_nowhere_is_one_line(where, words, tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert main(["train", *SMALL, "--reward", where]) == 2
    assert words in capsys.readouterr().err and not (tmp_path/"runs").exists()


HOSTILE = """
import mmap, os, sys, time
from beside import limit

def f(response, answer):
    if response == "spin":
        while True:
            pass
    if response == "sleep":
        time.sleep(1000)
    if response == "exit":
        sys.exit(3)
    if response == "die":
        os._exit(3)
    if response == "fill":
        mmap.mmap(-1, 6 << 30)
    if response == "talk":
        print("x"*100_000, file=sys.stderr)
    if response == "pid":
        return True, float(os.getpid())
    return len(response) < limit
"""


def test_hangs_and_crashes_are_wrong_answers_and_the_next_one_is_judged(tmp_path, caplog):
    (tmp_path/"beside.py").write_text("limit = 5")
    (tmp_path/"ours.py").write_text(HOSTILE)
    reward = OwnReward(f"{tmp_path/'ours.py'}:f", seconds=.3, patience=3)
    problem = Problem("What is 1 + 1?", "2", id="sum")
    bad = ["spin", "sleep", "exit", "die", "fill"]
    texts = [*bad, "talk", "good", "too long", *bad]
    scores = reward(texts, [problem]*len(texts))
    assert [score.correct for score in scores] == [False]*5 + [True, True, False] + [False]*5
    assert all(isinstance(score, Score) and score.total == score.correct for score in scores)
    assert sum(reward.failed.values()) == 2*len(bad)
    assert caplog.text.count("failed on") == 1                   # said once, then counted

    # the processor's time alone ends a loop, whatever the clock would allow
    patient = OwnReward(f"{tmp_path/'ours.py'}:f", seconds=.3, patience=600)
    assert not patient(["spin"], [problem])[0].correct and patient.failed.total() == 1

    # in other processes than this one, which are new where one was killed
    pid = reward(["pid"], [problem])[0].total
    assert pid not in (os.getpid(), 0)
    reward(["die"]*8, [problem]*8)
    again = reward(["pid"], [problem])[0].total
    assert again and again != pid


def test_what_it_is_given_is_data(tmp_path):
    "Quotes, code, NUL, half a surrogate pair and a megabyte arrive as they were written."
    (tmp_path/"ours.py").write_text(
        "def f(response, answer, question, options, kind):\n"
        "    told = (question, options, kind) == ('q', None, 'k')\n"
        "    return told and len(response) == int(answer)")
    reward = OwnReward(f"{tmp_path/'ours.py'}:f")
    code = '"); import os; os._exit(1) #'
    for text in (code, "{}{0}%s\n\r\u2028", "\x00\x1b", "\ud800", "x"*10**6):
        problem = Problem("q", str(len(text)), tags={"kind": "k"})
        assert reward([text], [problem])[0].correct, text[:20]
    assert not reward.failed


def test_the_rewards_of_numpy_are_numbers(tmp_path):
    (tmp_path/"ours.py").write_text(
        "import numpy as np\ndef f(response, answer):\n"
        "    return np.bool_(response == answer), np.float32(.5)")
    score = OwnReward(f"{tmp_path/'ours.py'}:f")(["2"], [Problem("q", "2")])[0]
    assert score.correct and score.total == .5
