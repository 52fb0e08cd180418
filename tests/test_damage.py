"""Files that came to harm: each is a line that names it and says what to do, and nothing of a run
is lost."""
import json
import re
import shutil

import pytest
import torch
from safetensors.torch import load_file, save_file

from calibrl.cli import main
from calibrl.config import Config
from calibrl.eval.answers import fault_of
from calibrl.files import read_jsonl, write_jsonl
from calibrl.rollout import Policy
from calibrl.runs import checkpoints as C
from calibrl.runs import demo, evaluation, start
from calibrl.train import make_optimizer
from full_disk import files_up_to


def said(capsys):
    "The last line of an error; there is no traceback above it."
    err = capsys.readouterr().err
    assert "Traceback" not in err
    return err.strip().splitlines()[-1]


ROW = '{"question": "Where is the café?", "answer": "1"}\n'


@pytest.mark.parametrize("name, content, why", [
    ("latin.jsonl", (ROW*3).encode("latin-1"), "row 1: not UTF-8 text, and none of the 2 rows"),
    ("one.jsonl", ROW.encode("latin-1"), "row 1: not UTF-8 text; JSON is UTF-8"),
    ("utf16.jsonl", ROW.encode("utf-16"), "row 1: not UTF-8 text"),
    ("scalars.jsonl", b'1\n"x"\nnull\n', "row 1: not a JSON object but int, and none of the 2"),
    ("scalars.json", b"[1, 2, 3]", "row 1: not a JSON object but int"),
    ("text.jsonl", b"question,answer\na,1\n", "row 1: not JSON")],
    ids=["latin", "one", "utf16", "scalars", "list", "text"])
def test_a_data_file_without_a_readable_row_says_the_first_fault(tmp_path, capsys, name, content,
                                                                 why):
    data = tmp_path/name
    data.write_bytes(content)
    train = ["train", "--data", str(data), "--out", str(tmp_path/"run")]
    for command in (["data", "check", str(data)], train):
        assert main(command) == 2
        line = said(capsys)
        assert str(data) in line and why in line
    assert not (tmp_path/"run").exists()


def test_a_data_file_with_one_readable_row_is_read(tmp_path, capsys):
    data = tmp_path/"some.jsonl"
    row = {"question": "How much is 1+1?", "answer": "2"}
    good = json.dumps(row) + "\n"
    data.write_bytes(ROW.encode("latin-1") + good.encode()*3)
    assert main(["data", "check", str(data)]) == 0
    assert "3 problems of 4 rows" in capsys.readouterr().out

    # one of four is read, too, but a script is told that most are not
    data.write_bytes(ROW.encode("latin-1")*3 + good.encode())
    assert main(["data", "check", str(data)]) == 2
    said = capsys.readouterr()
    assert "1 problems of 4 rows" in said.out and "more than half" in said.err


SMALL = ["--prompts", "2", "--responses", "2", "--mini-batches", "1", "--max-new-tokens", "24",
         "--steps", "4", "--save-every", "2"]
NEWEST = "checkpoints/step-4"


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    "A finished run of four steps, with checkpoints after two and four."
    out = tmp_path_factory.mktemp("run")/"whole"
    assert main(["train", *SMALL, "--out", str(out)]) == 0
    return out


@pytest.fixture
def cut(whole, tmp_path):
    "The same run as if it had been killed before its summary."
    out = tmp_path/"run"
    shutil.copytree(whole, out)
    (out/"summary.json").unlink()
    return out


def go_on(out):
    return main(["train", *SMALL, "--out", str(out)])


def without_clock(out):
    return [row | {"seconds": 0} for row in read_jsonl(out/"metrics.jsonl")]


def logs(out):
    return [(out/name).read_bytes() for name in ("metrics.jsonl", "samples.jsonl")]


def falls_back(out, whole, capsys, *words):
    "The newest checkpoint is named and passed over, and the run ends as it would have."
    assert go_on(out) == 0
    err = capsys.readouterr().err
    for word in ("step-4 cannot be read", "trying the one before", *words):
        assert word in err, err
    assert without_clock(out) == without_clock(whole)
    name = "adapter/adapter_model.safetensors"
    assert (out/name).read_bytes() == (whole/name).read_bytes()


def unhashed(folder):
    "Make a checkpoint one of an older version."
    (folder/"checksums.json").unlink(missing_ok=True)
    return folder


# ---- checkpoints
FILES = ["adapter/adapter_model.safetensors", "adapter/adapter_config.json", "adapter/base.json",
         "state.safetensors", "state.json"]


@pytest.mark.parametrize("name", FILES)
def test_one_changed_bit_is_found(whole, cut, capsys, name):
    "In the last byte of a file it leaves tensors and JSON that can be read."
    file = cut/NEWEST/name
    data = bytearray(file.read_bytes())
    data[-1] ^= 1
    file.write_bytes(data)
    falls_back(cut, whole, capsys, f"{name} is damaged")


def test_a_missing_file_is_found(whole, cut, capsys):
    (cut/NEWEST/"adapter/base.json").unlink()
    falls_back(cut, whole, capsys, "adapter/base.json is missing")


@pytest.mark.parametrize("content", ["{}", "[]", "", '{"step": 4}',
                                     '{"step": 4, "metrics.jsonl": "9", "samples.jsonl": -1}'])
def test_a_state_that_says_nothing_cuts_no_log(whole, cut, capsys, content):
    (unhashed(cut/NEWEST)/"state.json").write_text(content)
    falls_back(cut, whole, capsys, "state.json")


@pytest.mark.parametrize("content", ["{}", "["])
def test_without_a_readable_checkpoint_nothing_is_touched(cut, capsys, content):
    for path in (cut/"checkpoints").iterdir():
        (unhashed(path)/"state.json").write_text(content)
    before = logs(cut)
    assert go_on(cut) == 2
    line = said(capsys)
    assert f"no checkpoint in {cut/'checkpoints'} can be read" in line and "another --out" in line
    assert logs(cut) == before


@pytest.mark.parametrize("part, name, value", [
    ("adapter", "adapter_model.safetensors", float("nan")),
    (".", "state.safetensors", float("inf"))])
def test_numbers_that_are_none_are_found_without_checksums(whole, cut, capsys, part, name, value):
    file = unhashed(cut/NEWEST)/part/name
    tensors = load_file(file)
    key = next(key for key, tensor in tensors.items() if tensor.ndim > 1)
    tensors[key].view(-1)[0] = value
    save_file(tensors, file)
    falls_back(cut, whole, capsys, "numbers that are not finite")


@pytest.mark.parametrize("change", [
    lambda tensors: tensors.pop("random.cpu"),
    lambda tensors: tensors.update({"random.cpu": tensors["random.cpu"][:9].clone()}),
    lambda tensors: tensors.update({"optimizer.0.exp_avg": torch.zeros(2, 3)}),
    lambda tensors: tensors.update({"optimizer.900.exp_avg": torch.zeros(2, 3)}),
    lambda tensors: tensors.update({"optimizer.x.exp_avg": torch.zeros(2, 3)}),
    lambda tensors: tensors.update({"optimizer": torch.zeros(2, 3)})],
    ids=["no noise", "short noise", "shape", "number", "name", "bare"])
def test_moments_that_do_not_fit_are_found_without_checksums(whole, cut, capsys, change):
    file = unhashed(cut/NEWEST)/"state.safetensors"
    tensors = load_file(file)
    change(tensors)
    save_file(tensors, file)
    falls_back(cut, whole, capsys, "state.safetensors")


def test_a_checkpoint_of_an_older_version_goes_on_and_says_so(whole, cut, capsys):
    unhashed(cut/NEWEST)
    assert go_on(cut) == 0
    assert "step-4 has no checksums.json" in capsys.readouterr().err
    assert without_clock(cut) == without_clock(whole)


def test_a_checkpoint_that_is_a_file_is_replaced_in_time(whole, cut, capsys):
    shutil.rmtree(cut/NEWEST)
    (cut/NEWEST).write_text("not a folder")
    falls_back(cut, whole, capsys)
    assert (cut/NEWEST/"state.json").is_file()


def test_what_is_beyond_the_run_does_not_push_its_checkpoints_out(tiny, tmp_path):
    policy = Policy.from_pretrained(tiny)
    optimizer = make_optimizer(policy, Config())
    for step in (1, 2, 99):
        C.save_checkpoint(tmp_path, step, policy, optimizer, score=step)
    (tmp_path/"step-99/state.json").write_text('{"score": "high"}')
    (tmp_path/"step-²").mkdir()
    C.prune(tmp_path, 1, 2)
    assert [path.name for path in C.checkpoints(tmp_path)] == ["step-2", "step-99"]


@pytest.mark.parametrize("change", [
    lambda data: data[:100], lambda data: data.replace(b"\n", b" ", 1),
    lambda data: b"{}\n" + data, lambda data: data[:-1] + b" \n"])
def test_a_log_that_was_changed_is_not_cut(cut, capsys, change):
    before = logs(cut)
    (cut/"metrics.jsonl").write_bytes(change(before[0]))
    (cut/"samples.jsonl").write_bytes(before[1] + b'{"step": 5, "torn')
    now = logs(cut)
    assert go_on(cut) == 2
    assert str(cut/"metrics.jsonl") in said(capsys)
    assert logs(cut) == now


# ---- other files of a run
TOML = [b"steps = 4\n[run]\nmodel = 5\nidentity = 3\n", b"run = 5\n", b"run = [1]\n", b"\xff\xfe",
        b"steps = 'x'\n", b"= 3"]
METRICS = [b"[1]\n", b'{"step": 1}\n', b"null\n", b"\xff\n", b'"text"\n', b"{}\n", b"[" * 9999,
           b'{"step": 1, "seconds": "9"}\n']
CONFIG = [b"", b"[1]", b"5", b"{}", b'{"peft_type": "LORA", "r": "x"}', b'{"peft_type": 7}',
          b"\xff"]


def damages():
    "Pairs: a command, and a file of a run that it reads with something else in it."
    for content in TOML:
        yield "report", "config.toml", content
        yield "train", "config.toml", content
    for content in METRICS:
        yield "report", "metrics.jsonl", content + b"\n"
    for content in (b"[1]\n", b"\xff\n", b"null\n"):
        yield "report", "samples.jsonl", content
    for content in CONFIG:
        yield "export", "adapter/adapter_config.json", content
    for content in (b"[1]", b"", b'"x"'):
        yield "export", "adapter/base.json", content
    for content in (b"", b"garbage"*99):
        yield "export", "adapter/adapter_model.safetensors", content
    yield "eval", "config.toml", b"run = 5\n"
    yield "eval", "adapter/adapter_config.json", b"[1]"
    yield "eval", "checkpoints", b"a file"


def line_of(command, run, tmp_path):
    "The arguments of a command that reads a run."
    return {"report": ["report", str(run)],
            "train": ["train", *SMALL, "--out", str(run)],
            "export": ["export", str(run), "--out", str(tmp_path/"merged"), "--dtype", "fp32"],
            "eval": ["eval", "--adapter", str(run), "--limit", "1", "--out", str(tmp_path/"eval")],
            }[command]


@pytest.mark.parametrize("command, name, content", damages())
def test_a_damaged_file_of_a_run_is_named(cut, tmp_path, capsys, command, name, content):
    if (cut/name).is_dir():
        shutil.rmtree(cut/name)
    (cut/name).write_bytes(content)
    assert main(line_of(command, cut, tmp_path)) == 2
    line = said(capsys)
    assert "adapter" in line if name.startswith("adapter/") else str(cut/name) in line, line
    assert not (tmp_path/"merged").exists()


@pytest.mark.parametrize("content", [
    '{"step": 1, "image": 5, "question": ["a"]}', '{"image": "data:image/png;base64,a"}', "{}",
    '{"images": ["/etc/passwd"], "response": {}, "correct": "x"}'])
def test_a_strange_sample_is_shown_as_far_as_it_can_be(cut, capsys, content):
    with open(cut/"samples.jsonl", "a") as file:
        file.write(content + "\n")
    assert main(["report", str(cut)]) == 0
    assert "root:" not in (cut/"report.html").read_text()


def test_an_adapter_without_numbers_is_refused(cut, tmp_path, capsys):
    file = cut/"adapter/adapter_model.safetensors"
    tensors = load_file(file)
    for tensor in tensors.values():
        tensor.fill_(float("nan"))
    save_file(tensors, file, metadata={"format": "pt"})
    assert main(line_of("eval", cut, tmp_path)) == 2
    assert f"{file} is damaged, or was changed after it was saved" in said(capsys)

    # one that was saved so, or by another program
    (cut/"adapter/base.json").unlink()
    assert main(line_of("eval", cut, tmp_path)) == 2
    assert "not finite" in said(capsys)


@pytest.mark.parametrize("name, change", [
    ("adapter_model.safetensors", lambda data: data[:-1] + bytes([data[-1] ^ 1])),
    ("adapter_config.json", lambda data: data.replace(b'"lora_alpha": 32', b'"lora_alpha": 64'))])
def test_an_adapter_that_was_changed_is_not_taken_for_the_one_that_was_trained(
        whole, cut, tmp_path, capsys, name, change):
    "One bit of a weight, or another scale: both can be loaded, and give other answers."
    file = cut/"adapter"/name
    before = file.read_bytes()
    file.write_bytes(change(before))
    assert file.read_bytes() != before
    for command in ("eval", "export"):
        assert main(line_of(command, cut, tmp_path)) == 2
        assert f"{file} is damaged, or was changed" in said(capsys)

    # the base may have moved
    config = cut/"adapter/adapter_config.json"
    moved = json.loads((whole/"adapter/adapter_config.json").read_text()) | {"revision": "main"}
    config.write_text(json.dumps(moved))
    shutil.copy(whole/"adapter/adapter_model.safetensors", cut/"adapter")
    assert main(line_of("export", cut, tmp_path)) == 0


def test_a_run_whose_checkpoints_are_gone_does_not_begin_again(cut, capsys):
    "Its logs tell of more steps than there could be without a checkpoint."
    before = logs(cut)
    shutil.rmtree(cut/"checkpoints")
    assert go_on(cut) == 2
    assert "holds no checkpoint" in (line := said(capsys)) and "tells of 4 steps" in line
    (cut/"checkpoints").symlink_to("nowhere")
    assert go_on(cut) == 2
    assert "should be a folder of checkpoints" in said(capsys)
    assert logs(cut) == before


# ---- two at once
def test_two_runs_without_a_folder_get_one_each(whole, tmp_path, monkeypatch):
    "The second begins while the first loads its policy, and is done before it."
    monkeypatch.chdir(tmp_path)
    load = start.load_policy
    codes = []

    def another_one_first(*args):
        monkeypatch.setattr(start, "load_policy", load)
        codes.append(main(["train", *SMALL]))
        return load(*args)

    monkeypatch.setattr(start, "load_policy", another_one_first)
    assert main(["train", *SMALL]) == 0 and codes == [0]
    for name in ("train", "train-2"):
        assert without_clock(tmp_path/"runs"/name) == without_clock(whole)


def test_two_evaluations_do_not_share_a_folder(tmp_path, monkeypatch, capsys):
    command = ["eval", "--benchmarks", "geometry_test", "--limit", "3", "--max-new-tokens", "8",
               "--out", str(tmp_path/"eval")]
    answer = evaluation.answer_benchmarks

    def another_one_first(*args):
        monkeypatch.setattr(evaluation, "answer_benchmarks", answer)
        assert main(command) == 2
        assert f"{tmp_path/'eval'} is in use" in said(capsys)
        return answer(*args)

    monkeypatch.setattr(evaluation, "answer_benchmarks", another_one_first)
    assert main(command) == 0
    rows = read_jsonl(tmp_path/"eval/answers.jsonl")
    assert [row["index"] for row in rows] == [0, 1, 2]


def test_two_demos_do_not_share_a_folder(tmp_path, monkeypatch):
    tried = []

    def another_one_first(out, cfg):
        monkeypatch.undo()
        with pytest.raises(ValueError, match="is in use"):
            demo.run_demo(out, cfg, 3, 1)
        tried.append(out)
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(demo, "begin_demo", another_one_first)
    with pytest.raises(OSError, match="what was written before stays in .*give another --out"):
        demo.run_demo(tmp_path/"demo", Config(), 3, 1)
    assert tried == [tmp_path/"demo"]


# ---- a full disk
def test_a_full_disk_in_the_last_save_keeps_the_checkpoint(whole, cut, capsys):
    "Nothing is left to train: only the adapter, the curves and the report are written."
    with files_up_to(100_000):
        assert go_on(cut) == 2
    line = said(capsys)
    assert f"what was saved before stays in {cut}" in line and "same command again" in line
    assert "adapter could not be written" in line or ".adapter.new" in line
    assert not (cut/".adapter.new").exists() and (cut/NEWEST).is_dir()
    assert go_on(cut) == 0
    assert without_clock(cut) == without_clock(whole)


def test_a_full_disk_in_export_leaves_nothing(whole, tmp_path, capsys):
    with files_up_to(100_000):
        assert main(line_of("export", whole, tmp_path)) == 2
    line = said(capsys)
    assert "nothing is left of it" in line and re.search(r"free [\d,]+ MiB", line)
    assert list(tmp_path.iterdir()) == []


EVAL = ["eval", "--benchmarks", "geometry_test", "--limit", "3", "--max-new-tokens", "8", "--out"]


@pytest.fixture(scope="module")
def answered(tmp_path_factory):
    "An evaluation of three problems."
    out = tmp_path_factory.mktemp("eval")/"whole"
    assert main([*EVAL, str(out)]) == 0
    return out


@pytest.mark.parametrize("left", [b"", b'{"model": nu'])
def test_half_a_note_does_not_block_an_evaluation(answered, tmp_path, capsys, left):
    out = tmp_path/"eval"
    shutil.copytree(answered, out)
    (out/"eval.json").write_bytes(left)
    assert main([*EVAL, str(out)]) == 0
    assert "eval.json was not written whole" in capsys.readouterr().err
    for name in ("answers.jsonl", "eval.json"):
        assert (out/name).read_bytes() == (answered/name).read_bytes()


def test_an_evaluation_on_a_full_disk_goes_on(tmp_path, capsys):
    more = [*EVAL[:-1], "--k", "8", "--out"]      # the answers need more than a picture does
    whole, out = tmp_path/"whole", tmp_path/"eval"
    assert main([*more, str(whole)]) == 0
    size = (whole/"answers.jsonl").stat().st_size
    assert size - 100 > max(path.stat().st_size for path in whole.rglob("*.jpg"))
    with files_up_to(size - 100):
        assert main([*more, str(out)]) == 2
    assert "answers.jsonl could not be written" in (line := said(capsys)), line
    assert "answers so far are kept" in line
    assert main([*more, str(out)]) == 0
    assert (out/"answers.jsonl").read_bytes() == (whole/"answers.jsonl").read_bytes()


def test_an_evaluation_whose_pictures_find_no_room_goes_on(answered, tmp_path, capsys):
    out = tmp_path/"eval"
    with files_up_to(2300):
        assert main([*EVAL, str(out)]) == 2
    assert ".jpg could not be written" in (line := said(capsys)), line
    assert "answers so far are kept" in line
    assert main([*EVAL, str(out)]) == 0
    assert (out/"answers.jsonl").read_bytes() == (answered/"answers.jsonl").read_bytes()


# ---- files of an evaluation
def alter(rows, key, value):
    "Give the first row another value for a key; None takes the key out."
    rows[0] = {k: v for k, v in rows[0].items() if k != key}
    if value is not None:
        rows[0][key] = value


CHANGES = [("benchmark", None), ("benchmark", []), ("index", "x"), ("index", 7.5), ("k", None),
           ("k", "x"), ("correct", None), ("correct", []), ("lengths", "x"), ("question", 7.5),
           ("votes", 7.5), ("greedy", 3), ("error", [])]


@pytest.mark.parametrize("key, value", CHANGES)
def test_what_a_row_lacks_to_be_an_answer_is_said(answered, key, value):
    rows = read_jsonl(answered/"answers.jsonl")
    assert fault_of(rows[0]) == ""
    alter(rows, key, value)
    assert fault_of(rows[0])


@pytest.mark.parametrize("against", [False, True], ids=["goes on", "against"])
def test_a_row_that_is_no_answer_is_named(answered, tmp_path, capsys, against):
    out = tmp_path/"eval"
    shutil.copytree(answered, out)
    rows = read_jsonl(out/"answers.jsonl")
    alter(rows, "lengths", None)
    write_jsonl(out/"answers.jsonl", rows)
    more = [str(tmp_path/"other"), "--against", str(out)] if against else [str(out)]
    assert main([*EVAL, *more]) == 2
    line = said(capsys)
    assert f"{out/'answers.jsonl'}, row 1: " in line and "take it out" in line


@pytest.mark.parametrize("key, value", [("run", None), ("run", 5), ("batch", None), ("index", 99),
                                        ("batch", [0, 0]), ("batch", [0]), ("batch", [0, 99]),
                                        ("content", None)])
def test_a_row_that_does_not_say_how_it_was_made_is_refused(answered, tmp_path, capsys, key, value):
    out = tmp_path/"eval"
    shutil.copytree(answered, out)
    rows = read_jsonl(out/"answers.jsonl")
    alter(rows, key, value)
    write_jsonl(out/"answers.jsonl", rows)
    assert main([*EVAL, str(out)]) == 2
    assert str(out/"answers.jsonl") in said(capsys)


@pytest.mark.parametrize("content", ["[1]", '{"policy": [1]}', '{"policy": 3}', "3", "{}"])
def test_another_note_in_an_evaluations_folder_is_named(answered, tmp_path, capsys, content):
    out = tmp_path/"eval"
    shutil.copytree(answered, out)
    (out/"eval.json").write_text(content)
    assert main([*EVAL, str(out)]) == 2
    assert str(out) in (line := said(capsys)) and "give another --out" in line


def test_an_answer_that_is_taken_out_is_asked_again(answered, tmp_path):
    "As the advice says; no other row is lost for it."
    out = tmp_path/"eval"
    shutil.copytree(answered, out)
    lines = (out/"answers.jsonl").read_bytes().splitlines(keepends=True)
    (out/"answers.jsonl").write_bytes(lines[0] + lines[2])
    assert main([*EVAL, str(out)]) == 0
    again = (out/"answers.jsonl").read_bytes().splitlines(keepends=True)
    assert sorted(again) == sorted(lines)


def test_a_row_of_a_log_is_not_to_be_taken_out(cut, capsys):
    (cut/"metrics.jsonl").write_bytes(b"no row\n" + logs(cut)[0])
    assert main(["report", str(cut)]) == 2
    line = said(capsys)
    assert f"{cut/'metrics.jsonl'}, line 1: no JSON" in line and line.endswith("mend the line")
