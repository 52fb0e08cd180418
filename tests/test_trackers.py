"""Trackers get the numbers of metrics.jsonl: each is asked what it stored, without a network. A
tracker that is not installed here is skipped."""
import json
import sqlite3
import struct

import pytest

from calibrl.cli import main
from calibrl.files import read_jsonl

FEW = ["--prompts", "2", "--responses", "2", "--mini-batches", "1", "--max-new-tokens", "24",
       "--save-every", "2"]
SHOWN = ("loss", "reward", "entropy", "gap", "grad_norm", "tokens")


def trained(out, tracker, steps):
    argv = ["train", *FEW, "--steps", str(steps), "--tracker", tracker, "--out", str(out)]
    assert main(argv) == 0
    return read_jsonl(out/"metrics.jsonl")


def check(rows, stored):
    "`stored`: for each step, in their order, a dict of numbers."
    assert len(rows) == len(stored) == 2
    for row, found in zip(rows, stored, strict=True):
        for k in SHOWN:
            assert found[k] == pytest.approx(row[k], rel=1e-6), k


def test_tensorboard(tmp_path):
    pytest.importorskip("tensorboard")
    rows = trained(tmp_path/"run", "tensorboard", 2)
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
    events = EventAccumulator(str(tmp_path/"run/calibrl"))
    events.Reload()
    check(rows, [{k: events.Scalars(k)[i].value for k in SHOWN} for i in range(2)])
    assert [e.step for e in events.Scalars("loss")] == [1, 2]


def test_trackio(tmp_path, monkeypatch):
    "In its local database; a second run of the same name, in another folder, is a run of its own."
    monkeypatch.setenv("TRACKIO_DIR", str(tmp_path/"trackio"))
    pytest.importorskip("trackio")                       # after the folder is set: it looks once
    rows = [trained(tmp_path/place/"run", "trackio", 2) for place in "ab"]
    with sqlite3.connect(tmp_path/"trackio/calibrl.db") as db:
        found = db.execute("select run_id, step, metrics from metrics order by id").fetchall()
    assert len({run for run, *_ in found}) == 2
    assert [step for _, step, _ in found] == [1, 2, 1, 2]
    for i in (0, 1):
        check(rows[i], [json.loads(m) for *_, m in found[2*i:2*i+2]])


def records(path):
    """The records of a log in LevelDB's format, as wandb writes one: after 7 bytes of its own,
    blocks of 32 KiB that hold pieces (checksum, length, kind)."""
    log = path.read_bytes()
    at = 7
    out = []
    whole = b""
    while at + 7 <= len(log):
        room = 2**15 - at % 2**15
        if room < 7:                                     # too little for a piece: filled up
            at += room
            continue
        _, length, kind = struct.unpack("<IHB", log[at:at + 7])
        whole += log[at + 7:at + 7 + length]
        at += 7 + length
        if kind in (1, 4):                               # a whole one, or the last of several
            out.append(whole)
            whole = b""
    return out


def test_wandb(tmp_path, monkeypatch):
    "In the run that it keeps below the run folder, to be sent later."
    pytest.importorskip("wandb")
    monkeypatch.setenv("WANDB_MODE", "offline")
    monkeypatch.setenv("WANDB_SILENT", "true")
    rows = trained(tmp_path/"run", "wandb", 2)
    from wandb.proto import wandb_internal_pb2 as kinds
    path = next(tmp_path.glob("run/wandb/offline-run-*/run-*.wandb"))
    found = []
    for r in map(kinds.Record.FromString, records(path)):
        if r.WhichOneof("record_type") == "history":
            items = r.history.item
            found.append({i.key or i.nested_key[0]: json.loads(i.value_json) for i in items})
    check(rows, found)
    assert [r["_step"] for r in found] == [1, 2]


def test_a_tracker_that_is_not_installed_is_named_before_anything_is_loaded(
        capsys, monkeypatch, tmp_path):
    import importlib.util
    from calibrl.rollout import Policy
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    monkeypatch.setattr(Policy, "from_pretrained", lambda *a, **kw: pytest.fail("loaded"))
    out = tmp_path/"run"
    assert main(["train", "--tracker", "wandb", "--out", str(out)]) == 2 and not out.exists()
    assert "--tracker wandb needs the package wandb: pip install" in capsys.readouterr().err
