"""Several processes: killed together or one alone and continued, in other numbers, and with
uneven work."""
import json
import os
import shutil
import subprocess
import sys
import time
from dataclasses import replace
from datetime import timedelta
from pathlib import Path

import psutil
import pytest
import torch

from calibrl import parallel as P
from calibrl import train as T
from calibrl.cli import main
from calibrl.files import read_jsonl
from calibrl.geometry import problems
from calibrl.rollout import Policy
from calibrl.runs import checkpoints as C
from calibrl.runs import loop

ROOT = Path(__file__).resolve().parent.parent
ASSETS = ROOT/"calibrl/assets"
SMALL = ["--prompts", "4", "--responses", "4", "--max-new-tokens", "40", "--steps", "6",
         "--save-every", "2"]
SLOW = """import os, time
fsync = os.fsync
os.fsync = lambda fd: (time.sleep(0.25), fsync(fd))[1]
"""


def launch(out, *more, path=()):
    "Two processes of `calibrl train`, as the documentation launches them."
    env = {**os.environ, "OMP_NUM_THREADS": "1",
           "PYTHONPATH": os.pathsep.join(map(str, [*path, ROOT]))}
    argv = [sys.executable, "-m", "accelerate.commands.launch", "--config_file",
            str(ASSETS/"ddp.yaml"), "--num_processes", "2", "--main_process_port", "0",
            "-m", "calibrl.cli", "train", *SMALL, "--out", str(out), *more]
    return subprocess.Popen(argv, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
                            env=env)


def members(launcher):
    "The processes that train, by their number."
    found = {}
    for p in psutil.Process(launcher.pid).children(recursive=True):
        try:
            env = p.environ()
        except psutil.Error:
            continue
        if "RANK" in env:
            found[int(env["RANK"])] = p
    return found


def done(p, seconds=600):
    out, err = p.communicate(timeout=seconds)
    assert p.returncode == 0, err[-3000:]
    return out


def unless_aborted(run):
    """`run(0)`, and `run(1)` if a process was aborted: gloo's listener does that now and then when
    a connection fails (github.com/pytorch/gloo/issues/514). The same command goes on; whatever
    else goes wrong counts."""
    try:
        return run(0)
    except (AssertionError, torch.multiprocessing.ProcessExitedException) as e:
        if "SIGABRT" not in str(e):
            raise
        return run(1)


NUMBERS = ("loss", "policy_loss", "exploration_loss", "gap", "reward", "entropy", "tokens")


def close(a, b):
    """The same steps, up to the order in which floats are added: it decides on which side of the
    gate a gap of zero falls, which the gradient's norm shows first."""
    assert [r["sample"] for r in a] == [r["sample"] for r in b] and len(a) > 0
    for x, y in zip(a, b, strict=True):
        assert all(y[k] == pytest.approx(x[k], abs=1e-5) for k in NUMBERS)
        assert y["grad_norm"] == pytest.approx(x["grad_norm"], rel=1e-3)


def without_clock(rows):
    return [{k: v for k, v in r.items() if k != "seconds"} for r in rows]


def figures(out):
    return without_clock(read_jsonl(out/"metrics.jsonl"))


@pytest.fixture(scope="module")
def straight(tmp_path_factory):
    "An uninterrupted run of two processes."
    out = tmp_path_factory.mktemp("processes")/"straight"
    said = unless_aborted(lambda _: done(launch(out)))
    assert said.count("Files in") == 1                                # one voice
    return out


def names(out):
    "The names of a run's checkpoints."
    return [c.name for c in C.checkpoints(out/"checkpoints")]


def test_two_processes_give_the_run_of_one(straight, tmp_path):
    """One process with the same slices to sample: the same run, up to the order in which floats
    are added."""
    alone = tmp_path/"one"
    assert main(["train", *SMALL, "--sample-prompts", "2", "--out", str(alone)]) == 0
    one, two = figures(alone), figures(straight)
    close(one, two)
    assert len(one) == 6 and T.load_config(straight/"config.toml").sample_prompts == 2

    # not to the last bit: there were two indeed
    assert any(a["loss"] != b["loss"] for a, b in zip(one, two, strict=True))
    assert names(alone) == names(straight)


def test_killed_alone_or_together_and_gone_on_with(straight, tmp_path):
    """kill -9 of the second process, of the first while it writes a checkpoint, of all with their
    launcher; the same command each time."""
    out = tmp_path/"run"
    log = out/"metrics.jsonl"
    (tmp_path/"slow").mkdir()
    (tmp_path/"slow/sitecustomize.py").write_text(SLOW)

    def lines(n):
        return lambda: log.exists() and log.read_bytes().count(b"\n") >= n

    def writing(n):
        return lambda: (out/f"checkpoints/.step-{n}.new").exists()

    moments = [     # who is killed, what has happened, slowly or not, the newest checkpoint then
        ([1], lines(1), False, 0),
        ([0], writing(2), True, 0),
        ([0, 1, None], lines(3), False, 2)]
    for who, happened, slow, newest in moments:
        p = launch(out, path=[tmp_path/"slow"] if slow else [])
        end = time.monotonic() + 120
        while not happened():
            assert p.poll() is None and time.monotonic() < end, p.stderr.read()
            time.sleep(0.002)
        them = members(p)
        assert sorted(them) == [0, 1]
        if None in who:
            p.kill()
        for rank in who:
            if rank is not None:
                them[rank].kill()

        # nobody waits for the dead
        err = p.communicate(timeout=60)[1]
        gone, alive = psutil.wait_procs(them.values(), timeout=10)
        assert p.returncode != 0 and not alive and not (out/"summary.json").exists()
        if who == [1]:
            # where the launcher sees it first, it ends the other process before that can say so
            if "closing signal SIGTERM" not in err:
                assert "another process of this run ended" in err
                assert "give the same command again" in err
        assert (names(out) or ["step-0"])[-1] == f"step-{newest}"
    unless_aborted(lambda _: done(launch(out)))
    assert figures(out) == figures(straight)
    for name in ("samples.jsonl", "adapter/adapter_model.safetensors"):
        assert (out/name).read_bytes() == (straight/name).read_bytes()


def test_a_run_of_two_goes_on_with_one(straight, tmp_path):
    "The slices that are sampled stay those the run began with, so the numbers do, too."
    out = tmp_path/"run"
    shutil.copytree(straight, out)
    (out/"summary.json").unlink()
    shutil.rmtree(out/"checkpoints/step-6")
    assert names(out)[-1] == "step-4"        # beside it the best, if that is another
    assert main(["train", *SMALL, "--out", str(out)]) == 0
    close(figures(straight), figures(out))


def test_when_one_is_told_to_stop_all_stop(tmp_path, monkeypatch):
    """A signal may reach one process a step before the others: a run that ends before its last
    step is never called finished."""
    # the other process was asked to stop
    monkeypatch.setattr(loop, "all_gather",
                        lambda mine: [mine, True] if mine is False else [mine])
    out = tmp_path/"run"
    assert main(["train", *SMALL, "--out", str(out)]) == 130
    assert len(figures(out)) == 1 and not (out/"summary.json").exists()
    assert names(out)[-1] == "step-1"


def verdicts(monkeypatch):
    "Random weights are never right: any verdict will do."
    from calibrl import tasks
    monkeypatch.setattr(tasks, "score",
                        lambda text, *_: tasks.Score(sum(map(ord, text)) % 2 == 0, False))


def of_kind(kind):
    "Problems for a case; one without a picture among those with."
    text_only = CASES[kind][0] == "qwen2"
    ps = problems(6, seed=1)
    if kind == "one expert":
        ps[1:] = [replace(p, expert=None) for p in ps[1:]]
    return [replace(p, images=()) if text_only or i == 1 else p for i, p in enumerate(ps)]


# of 3 problems one process has 1, the other 2
UNEVEN = T.Config(prompts=3, responses=3, mini_batches=1, steps=2, max_new_tokens=32,
                  sample_prompts=1, micro_tokens=1, lr=1e-3)
CASES = {     # the model, and what differs
    "see": ("qwen2_5_vl", {}),
    "read": ("qwen2", {"method": "grpo", "reduce": "seq-mean-token-sum-norm"}),
    "rows of experts": ("qwen3_vl", {"method": "luffy"}),
    "live": ("qwen2", {"method": "calibrl_live", "reduce": "seq-mean-token-mean"}),
    "reference": ("internvl", {"method": "calibrl_reference"}),
    # one problem of six has an expert: in its step the other process has nothing to do
    "one expert": ("qwen2", {"method": "sft"})}


def member(rank, store, folders, cases):
    "One of two processes; notes its rows, its adapter and how many backward passes it made."
    torch.set_num_threads(1)
    torch.distributed.init_process_group("gloo", init_method=f"file://{store}", rank=rank,
                                         world_size=2, timeout=timedelta(seconds=60))
    place = Path(store).parent
    with pytest.MonkeyPatch.context() as m:
        verdicts(m)
        passes = counted(m)
        for kind, (_, options) in cases.items():
            passes.clear()
            policy = Policy.from_pretrained(folders[kind],
                                            gradient_checkpointing=kind == "see")
            rows = list(T.train(policy, of_kind(kind), replace(UNEVEN, **options)))
            note = {"rows": without_clock(rows), "passes": passes}
            (place/f"{kind}-{rank}.json").write_text(json.dumps(note))
            policy.save(place/f"{kind}-{rank}")
    P.all_gather(None)
    torch.distributed.destroy_process_group()


def counted(m):
    "Have the tokens that count in each backward pass noted in a list."
    passes, backward = [], T.backward
    def noting(policy, part, *rest):
        passes.append(int(part.mask.sum()))
        return backward(policy, part, *rest)
    m.setattr(T, "backward", noting)
    return passes


def test_uneven_work_is_the_work_of_one(checkpoint, tmp_path, monkeypatch):
    """Text-only and three that see; answers of unequal length, a problem without a picture,
    recomputed activations, the methods that look at rows in other ways, and a process that has
    nothing to do. Both make the same number of backward passes."""
    folders = {kind: checkpoint(model) for kind, (model, _) in CASES.items()}
    unless_aborted(lambda n: torch.multiprocessing.start_processes(
        member, (str(tmp_path/f"store{n}"), folders, CASES), nprocs=2, start_method="spawn"))
    verdicts(monkeypatch)
    passes = counted(monkeypatch)
    for kind, (_, options) in CASES.items():
        passes.clear()
        policy = Policy.from_pretrained(folders[kind])
        alone = list(T.train(policy, of_kind(kind), replace(UNEVEN, **options)))
        notes = [json.loads((tmp_path/f"{kind}-{rank}.json").read_text()) for rank in (0, 1)]
        for note in notes:
            close(alone, note["rows"])

        # what one has less is made up for with passes in which no token counts
        first, second = (note["passes"] for note in notes)
        assert len(first) == len(second) and 0 not in passes
        assert sorted(filter(None, first + second)) == sorted(passes)
        assert first.count(0) == 2 and 0 not in second
        assert len(first) == (3 if kind == "one expert" else 4)

        # an adapter like any other
        saved = [Policy.from_pretrained(folders[kind], adapter=tmp_path/f"{kind}-{rank}").trainable
                 for rank in (0, 1)]
        assert all(torch.equal(a, b) for a, b in zip(*saved, strict=True))
        assert sum(w.any() for w in saved[0]) == len(policy.trainable)


@pytest.mark.parametrize("asked, what", [
    ("ACCELERATE_USE_FSDP", "FSDP"), ("ACCELERATE_USE_DEEPSPEED", "DeepSpeed")])
def test_a_base_is_not_sharded_here(asked, what, tmp_path, monkeypatch, capsys):
    "One line, before anything is loaded or made, names the engine that does it."
    monkeypatch.setenv(asked, "true")
    out = tmp_path/"run"
    assert main(["train", *SMALL, "--out", str(out)]) == 2
    said, = capsys.readouterr().err.splitlines()
    assert said.startswith(f"calibrl train: {what} is configured") and "--engine trl" in said
    assert "pages/scale" in said and not out.exists()
