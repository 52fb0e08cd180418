"""Data: every format that people train from, every row that cannot be used, and files that mean harm."""
import io, json, os, random, shutil
from pathlib import Path

import datasets
import pytest
from hypothesis import HealthCheck, given, settings, strategies as st
from PIL import Image

from calibrl import data
from calibrl.data import FileProblem, as_images, check_file, detect, load_problems, parse_map, read_rows
from calibrl.tasks import Problem, messages, score
from make_fixtures import FIXTURES, N, lines, make, parquet, png, problems

CSV_MAP = "question=aufgabe,answer=ergebnis,images=bild,expert=weg,level=stufe"
CASES = [("virl39k", "ViRL39K", {}), ("virl39k/39Krelease.parquet", "ViRL39K", {}), ("geometry3k.parquet", "Geometry3K", {}), ("easyr1.parquet", "EasyR1", {}), ("verl_text.parquet", "verl", {}),
         ("verl_list.parquet", "verl", {}), ("verl_record.parquet", "verl", {}), ("trl_messages.parquet", "TRL", {}), ("plain/trl_text.jsonl", "TRL", {}), ("plain/problems.jsonl", "columns", {}),
         ("mapped.csv", "columns", dict(map=CSV_MAP)), ("saved", "EasyR1", {}), ("hub", "EasyR1", dict(name="all")), ("hub", "EasyR1", dict(name="easy", split="test"))]


@pytest.fixture(scope="module", autouse=True)
def cache(tmp_path_factory):
    "Tables that `datasets` writes on the way go to a folder of this run."
    old, datasets.config.HF_DATASETS_CACHE = datasets.config.HF_DATASETS_CACHE, tmp_path_factory.mktemp("cache")
    datasets.disable_progress_bars()
    yield
    datasets.config.HF_DATASETS_CACHE = old


@pytest.fixture(scope="module")
def drawn(): return problems()


# Formats

@pytest.mark.parametrize("file, format, how", CASES, ids=lambda v: str(v))
def test_each_format_gives_the_problems_that_were_drawn(file, format, how, drawn):
    got = load_problems(FIXTURES/file, on_bad="fail", **how)
    if how.get("name"): drawn = drawn[:1] if how.get("split") == "test" else drawn[1:]
    assert got.format == format and len(got) == len(drawn) and len({q.id for q in got}) == len(got)
    for p, q in zip(drawn, got):
        assert isinstance(q, Problem) and q.question.removeprefix("<image>") == p.question and q.answer == p.answer
        assert q.images[0].mode == "RGB" and as_images(png(p.images[0]))[0].tobytes() == q.images[0].tobytes()
        parts = messages(q)[0]["content"]
        assert [part["type"] for part in parts] == ["image", "text"] and parts[0]["image"].size == p.images[0].size
        if got.counts["experts"]: assert score(q.expert, q.answer).correct and score(q.expert, q.answer).formatted
    assert got.counts["experts"] == got.counts["verified"] == (0 if format in ("ViRL39K", "Geometry3K", "EasyR1") else len(got))


def test_fixtures_are_what_the_script_makes(tmp_path):
    make(tmp_path)
    names = lambda d: sorted(p.relative_to(d).as_posix() for p in d.rglob("*") if p.is_file())
    assert names(tmp_path) == names(FIXTURES) and sum(p.stat().st_size for p in FIXTURES.rglob("*") if p.is_file()) < 300_000
    for name in names(FIXTURES):
        ours, theirs = tmp_path/name, FIXTURES/name
        if name.endswith(".parquet"): assert pixels(read_rows(ours)) == pixels(read_rows(theirs)), name
        elif name.endswith((".jsonl", ".csv", ".md")): assert ours.read_text() == theirs.read_text(), name
        elif name.endswith(".png") and "broken" not in name: assert as_images(ours)[0].tobytes() == as_images(theirs)[0].tobytes(), name


def pixels(ds):
    "Rows with pictures as pixels, so that another version of zlib does not count."
    see = lambda v: as_images(v)[0].tobytes() if isinstance(v, dict) and v.get("bytes") else [see(x) for x in v] if isinstance(v, list) else v
    return [{k: see(v) for k, v in row.items()} for row in ds]


def test_verl_takes_the_bare_question_and_says_what_it_left_out(tmp_path, drawn):
    got = load_problems(FIXTURES/"verl_text.parquet")
    assert not any("boxed" in p.question for p in got) and got.counts["boxed"] == 0 and got[0].tags == {"data_source": "drawn/geometry"}
    rows = read_rows(FIXTURES/"verl_text.parquet").remove_columns("extra_info").to_list()
    for r in rows: r["prompt"].insert(0, dict(role="system", content="Box the answer."))
    parquet([r | dict(pass_ratio=float(i > 0)) for i, r in enumerate(rows)], tmp_path/"bare.parquet")
    got = load_problems(tmp_path/"bare.parquet")
    assert got.counts["boxed"] == got.counts["system"] == N and "\\boxed" in str(got) and "system" in str(got)
    assert [p.expert is None for p in got] == [True] + [False]*(N - 1)                      # pass_ratio 0: the authors' loader passes over the expert


def test_formats_are_told_by_their_columns():
    assert detect(dict.fromkeys(["prompt", "reward_model", "images"], {"ground_truth": 1}))[1]["answer"] == "reward_model.ground_truth"
    assert detect(dict(question=1, answer=1), {"expert": "", "kind": "question"}) == ("columns", dict(question="question", answer="answer", kind="question"))
    assert parse_map("a=b, c = d,") == dict(a="b", c="d") and parse_map(None) == {} and parse_map(dict(a="b")) == dict(a="b")
    for columns, how, said in ((dict(frage=1, loesung=1), None, "frage, loesung"), (dict(problem=1), None, "answer=NAME"), (dict(problem=1, answer=1), "expert=way", "no such column"), ({}, None, "(none)")):
        with pytest.raises(ValueError, match=said.replace("(", r"\(").replace(")", r"\)")): detect(columns, how)
    with pytest.raises(ValueError, match="question=problem,expert=solution"): parse_map("expert")


def of(*rows, **how): return load_problems(datasets.Dataset.from_list(list(rows)), **how)


def test_options_labels_and_text_only_rows():
    a, b, c = of(dict(question="Which?", choices=["4 cm", "5 cm"], label=1))[0], of(dict(question="What is 2+2?", answer=4.0))[0], of(dict(question="Which?", options=["x", "y"], answer="B"))[0]
    assert (a.answer, a.options) == ("B", ("4 cm", "5 cm")) and (b.answer, b.images, b.options) == ("4", (), None) and (c.answer, c.options) == ("B", ("x", "y"))
    assert of(dict(question="Which?", options="x or y", answer="x"), map="options=")[0].options is None
    with pytest.raises(ValueError, match="bad options: they are str, not a list"): of(dict(question="Which?", options="x or y", answer="x"))


@pytest.mark.parametrize("solution, expert", [
    ("24", None), ("$24$", None), (r"\boxed{24}", None), ("<answer>24</answer>", None), ("4*6\n#### 24", "<think>4*6\n#### 24</think><answer>24</answer>"), ("<think>4*6</think><answer>24</answer>", "<think>4*6</think><answer>24</answer>"),
    ("x"*300 + r" \boxed{24}", "<think>" + "x"*300 + r" \boxed{24}</think><answer>24</answer>")])
def test_a_solution_alone_is_answer_and_expert(solution, expert):
    got = of(dict(problem="How much?", solution=solution))[0]
    assert (got.answer.strip("$"), got.expert) == ("24", expert)


def test_a_solution_beside_the_answer_gets_tags_around_its_own_conclusion():
    see = lambda solution: of(dict(problem="How much?", answer=r"\frac{1}{2}", solution=solution))[0].expert
    assert see(r"It is \boxed{\frac{1}{2}}.") == r"<think>It is \boxed{\frac{1}{2}}.</think><answer>\frac{1}{2}</answer>"
    assert see(r"It is \boxed{3}.").endswith("<answer>3</answer>")                           # a wrong one stays wrong
    assert see(r"<think>half</think> So \boxed{0.5}") == "<think>half</think> So \\boxed{0.5}\n<answer>0.5</answer>"
    assert see("I do not know.") == "I do not know." and see(r"\boxed{\frac{1}{2}}") is None


def test_experts_that_are_missing_or_wrong(tmp_path):
    rows = [dict(question="How long?", answer="4", expert=e) for e in ("<think>a</think><answer>4</answer>", "<think>a</think><answer>5</answer>", None, " ")]
    experts = lambda **how: [p.expert and p.expert[-10] for p in of(*rows, **how)]
    assert experts() == ["4", "5", None, None] and experts(wrong_expert="drop") == ["4", None, None, None] and experts(wrong_expert="skip") == ["4", None, None]
    assert experts(need_expert=True) == ["4", "5"] and experts(need_expert=True, wrong_expert="drop") == ["4"]
    assert of(*rows).counts["verified"] == 1
    with pytest.raises(ValueError, match="wrong_expert must be"): of(*rows, wrong_expert="hide")


# Rows that cannot be used

def test_every_row_left_out_is_named(tmp_path, caplog):
    got = load_problems(FIXTURES/"plain/faulty.jsonl", skipped=tmp_path/"skipped.jsonl")
    log = [json.loads(x) for x in (tmp_path/"skipped.jsonl").read_text().splitlines()]
    assert log == got.skipped and got.counts["rows"] == 13 and got.counts["skipped"] == 10 and len(got) == 3
    assert {r["row"]: r["kind"] for r in log} == {2: "bad image", 3: "bad image", 4: "bad image", 5: "no answer", 6: "no answer", 7: "image tokens", 8: "control token", 9: "no question", 12: "no answer", 13: "unreadable line"}
    assert all(r["file"] == str(FIXTURES/"plain/faulty.jsonl") and r["reason"].startswith(r["kind"]) for r in log)
    assert "3 problems of 13 rows" in caplog.text and "3 bad image" in caplog.text and "skipped.jsonl" in caplog.text and "1 of 2 (50.0%)" in caplog.text
    with pytest.raises(ValueError, match=r"faulty.jsonl, row 2: bad image: 'images/none.png' is missing"): load_problems(FIXTURES/"plain/faulty.jsonl", on_bad="fail")
    with pytest.raises(ValueError, match="on_bad must be skip or fail"): load_problems(FIXTURES/"plain/faulty.jsonl", on_bad="ignore")


def test_rows_are_counted_in_their_own_file(tmp_path, drawn):
    good = dict(question="How long?", answer="4")
    lines([good, good], tmp_path/"a.jsonl"); lines([good, dict(question="How long?", answer=None), good], tmp_path/"b.jsonl")
    got = load_problems(tmp_path)
    assert [(s["file"], s["row"]) for s in got.skipped] == [(str(tmp_path/"b.jsonl"), 2)] and [p.id for p in got] == ["a-1", "a-2", "b-1", "b-3"]
    shards = tmp_path/"shards"
    for i in range(2): parquet([dict(question="How long?", answer=str(j) if j != 1 else "", id="same") for j in range(3)], shards/f"train-0000{i}-of-00002.parquet")
    got = load_problems(shards)
    assert [(Path(s["file"]).name, s["row"]) for s in got.skipped] == [("train-00000-of-00002.parquet", 2), ("train-00001-of-00002.parquet", 2)]
    assert len({p.id for p in got}) == len(got) == 4                                         # ids that repeat are told apart


def test_nothing_usable_is_an_error_that_says_how_it_was_read(tmp_path):
    lines([dict(question="How long?", answer="", x=1)]*3, tmp_path/"a.jsonl")
    with pytest.raises(ValueError, match="none of its 3 rows can be used: 3 no answer; row 1, .*read as columns, question=question, answer=answer"): load_problems(tmp_path/"a.jsonl")
    lines([dict(frage="How long?", x=1)], tmp_path/"b.jsonl")
    with pytest.raises(ValueError, match=r"b.jsonl: no column holds the question: .* the columns are frage, x"): load_problems(tmp_path/"b.jsonl")


def test_prompts_too_long_are_refused_not_cut(checkpoint):
    from transformers import AutoProcessor
    from calibrl.rollout import encode
    processor = AutoProcessor.from_pretrained(checkpoint("qwen2_5_vl"))
    rows = [dict(question="How long?", answer="4", images=[dict(bytes=png(Image.new("RGB", (w, 84))), path=None)]) for w in (84, 84)] + [dict(question="How long? "*40, answer="4", images=[dict(bytes=png(Image.new("RGB", (84, 84))), path=None)])]
    got = of(*rows, processor=processor)
    long = max(got.lengths)
    assert [encode(processor, p)["input_ids"].shape[1] for p in got] == got.lengths and long > min(got.lengths) + 300
    few = of(*rows, processor=processor, max_prompt_tokens=long - 1)
    assert [p.id for p in few] == ["dataset-1", "dataset-2"] and few.skipped[0]["reason"] == f"prompt too long: {long} tokens, more than {long - 1}"
    assert (encode(processor, few[0])["input_ids"] == processor.tokenizer.convert_tokens_to_ids("<|image_pad|>")).sum() == 9
    thin = dict(question="How long?", answer="4", images=[dict(bytes=png(Image.new("RGB", (3000, 4))), path=None)])
    assert of(rows[0], thin).kinds == {"bad image": 1}                                        # beyond what the processors take
    text = AutoProcessor.from_pretrained(checkpoint("qwen3"))
    with pytest.raises(ValueError, match="the model reads text only"): of(rows[0], processor=text)
    with pytest.raises(ValueError, match="needs a processor"): of(rows[0], max_prompt_tokens=10)


@pytest.mark.parametrize("token", ["<|image_pad|>", "<|im_end|>", "<|vision_start|>", "<IMG_CONTEXT>", "<img>"])
def test_control_tokens_are_refused_wherever_they_stand(token):
    good = dict(question="How long?", answer="4", expert="<think>2+2</think><answer>4</answer>", options=["4", "5"])
    for field in ("question", "expert", "options"):
        bad = good | {field: [good[field][0], token] if field == "options" else good[field] + token}
        assert of(good, bad).kinds == {"control token": 1}
    for text in ("Is <|x|> positive?", "a <b> c", "x<|y| and |y|>z"): assert len(of(good | dict(question=text))) == 1      # mathematics is not markup


def test_paths_start_at_the_file_then_at_the_source(tmp_path):
    (tmp_path/"data/pics").mkdir(parents=True); (tmp_path/"pics").mkdir()
    (tmp_path/"data/pics/a.png").write_bytes(png(Image.new("RGB", (30, 30)))); (tmp_path/"pics/b.png").write_bytes(png(Image.new("RGB", (40, 40))))
    lines([dict(question="How long?", answer="4", image=f"pics/{x}.png") for x in "ab"], tmp_path/"data/train.jsonl")
    assert [p.images[0].size for p in load_problems(tmp_path)] == [(30, 30), (40, 40)]
    assert load_problems(tmp_path/"data/train.jsonl").kinds == {"bad image": 1}              # the file alone may not leave its folder
    assert [p.images[0].size for p in load_problems(tmp_path, root=tmp_path/"data")] == [(30, 30)]


def test_packed_pictures_are_pointed_at(tmp_path):
    shutil.copy(FIXTURES/"virl39k/39Krelease.parquet", tmp_path); (tmp_path/"images.zip").write_bytes(b"PK")
    with pytest.raises(ValueError, match="6 bad image.*images.zip: unpack it there"): load_problems(tmp_path)
    assert len(load_problems(tmp_path, root=FIXTURES/"virl39k")) == N


# Problems that wait

def test_pictures_wait_until_they_are_asked_for(monkeypatch, drawn):
    got = load_problems(FIXTURES/"easyr1.parquet")
    data._pictures.cache_clear()
    seen, real = [], data._decode
    monkeypatch.setattr(data, "_decode", lambda b: seen.append(1) or real(b))
    again = random.Random(0).sample(list(got), len(got))
    assert not seen and all(p.waits for p in again)
    for _ in range(3): got[0].images
    assert len(seen) == 1                                                                    # one step asks several times
    from dataclasses import replace
    other = replace(got[1], expert="<answer>1</answer>")
    assert type(other) is FileProblem and other.images[0].tobytes() == got[1].images[0].tobytes()
    assert data._pictures.cache_info().maxsize == 32


def test_a_picture_that_went_away_is_named_when_it_is_asked_for(tmp_path):
    shutil.copytree(FIXTURES/"plain", tmp_path/"plain")
    got = load_problems(tmp_path/"plain/problems.jsonl")
    (tmp_path/"plain/images/2.png").unlink()
    with pytest.raises(ValueError, match=r"problems.jsonl, row 3: image 'images/2.png' is missing"): got[2].images


def test_problems_of_a_file_can_be_rolled_out(policy):
    from calibrl.rollout import rollout
    got = load_problems(FIXTURES/"plain/faulty.jsonl", map="options=")
    ro = rollout(policy, got[:2], n=2, max_new_tokens=4)
    assert ro.has_expert.tolist() == [True, True, False, False] and len(ro.texts) == 4


# Pictures

def raw(im, kind="PNG", **kw):
    out = io.BytesIO(); im.save(out, kind, **kw)
    return out.getvalue()


def test_pictures_of_every_mode_become_rgb_on_white():
    see = lambda data: as_images(data)[0].getpixel((0, 0))
    clear = Image.new("RGBA", (8, 8), (0, 0, 0, 0))
    palette = clear.convert("P"); palette.info["transparency"] = palette.getpixel((0, 0))
    assert see(raw(clear)) == see(raw(clear, "WEBP", lossless=True)) == see(raw(Image.new("LA", (8, 8), (0, 0)))) == see(raw(palette, transparency=palette.getpixel((0, 0)))) == see(clear) == (255, 255, 255)
    assert see(raw(Image.new("I;16", (8, 8), 32768))) in {(127,)*3, (128,)*3} and see(raw(Image.new("1", (8, 8), 1))) == (255,)*3 and see(raw(Image.new("L", (8, 8), 9))) == (9,)*3
    assert max(abs(a - b) for a, b in zip(see(raw(Image.new("CMYK", (8, 8), (0, 255, 255, 0)), "JPEG")), (255, 0, 0))) < 12
    two = raw(Image.new("RGB", (8, 8), "red"), "GIF", save_all=True, append_images=[Image.new("RGB", (8, 8), "blue")])
    assert see(two) == (255, 0, 0)
    turned = Image.new("RGB", (20, 10)); exif = turned.getexif(); exif[274] = 6
    assert as_images(raw(turned, "JPEG", exif=exif))[0].size == (10, 20)


def test_files_that_mean_harm(tmp_path, monkeypatch):
    inside = tmp_path/"in"; inside.mkdir()
    (tmp_path/"secret.png").write_bytes(raw(Image.new("RGB", (8, 8)))); (inside/"ok.png").write_bytes(raw(Image.new("RGB", (8, 8))))
    (inside/"mine.png").symlink_to(tmp_path/"secret.png"); os.mkfifo(inside/"pipe.png")
    (inside/"run.eps").write_bytes(b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 10 10\n%%EndComments\nshowpage\n")
    assert len(as_images(["ok.png", "./x/../ok.png", "mine.png", str(inside/"ok.png"), None], inside)) == 4       # a link that you made is yours
    for value, why in (("../secret.png", "leaves the folder"), (str(tmp_path/"secret.png"), "leaves the folder"), ("x/../../secret.png", "leaves the folder"), ("file://" + str(tmp_path/"secret.png"), "leaves the folder"),
                       ("pipe.png", "missing"), (".", "missing"), ("a\0b.png", "missing"), ("x"*900, "missing"), ("x"*5001, "nor base64"), ("run.eps", "known format"), ("https://example.org/x.png", "web address"), ("ftp://example.org/x.png", "web address"),
                       ({"bytes": None, "path": None}, "without bytes or path"), ({}, "without bytes"), ({"path": "../secret.png"}, "leaves the folder"), (7, "int, not a picture"), ("data:image/png;base64,@@", "nor base64"), ("@"*2000, "nor base64"), ([None]*101, "more than 100"), ("data:text/plain,hi", "not base64")):
        with pytest.raises(ValueError, match=why): as_images(value, inside)
    side = 9000                                                                              # 81 million pixels in some 10 kB
    bomb = raw(Image.new("1", (side, side)))
    assert len(bomb) < 50_000
    with pytest.raises(ValueError, match="9000 x 9000 pixels"): as_images(bomb)
    with pytest.raises(ValueError, match="more than 50,000,000"): as_images(b"P5 60000 60000 255\n")
    with pytest.raises(ValueError, match="pixels"): as_images(Image.new("1", (side, side)))
    monkeypatch.setattr(data, "_MAX_BYTES", 10)
    with pytest.raises(ValueError, match="larger than 10 bytes"): as_images("ok.png", inside)


@settings(max_examples=150, deadline=None)
@given(st.sampled_from(["PNG", "JPEG", "GIF", "WEBP", "BMP", "TIFF", "PPM"]), st.data())
def test_a_damaged_picture_is_a_picture_or_a_reason(kind, draw):
    bad = bytearray(raw(Image.frombytes("RGB", (24, 24), random.Random(0).randbytes(24*24*3)), kind))
    for _ in range(draw.draw(st.integers(1, 6))): bad[draw.draw(st.integers(0, len(bad) - 1))] = draw.draw(st.integers(0, 255))
    bad = bytes(bad[:draw.draw(st.integers(0, len(bad)))])
    try: assert all(im.mode == "RGB" for im in as_images(bad))
    except ValueError as e: assert str(e).startswith("image")


ANY = st.recursive(st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=12) | st.sampled_from(["images/0.png", "<image>", r"\boxed{", "<answer>4</answer>", "\ud800", "4"]), lambda v: st.lists(v, max_size=3) | st.dictionaries(st.sampled_from(["role", "content", "type", "bytes", "path", "x"]), v, max_size=3), max_leaves=6)


@settings(max_examples=120, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(rows=st.lists(st.fixed_dictionaries({}, optional={c: ANY for c in ("question", "prompt", "answer", "images", "solution", "options", "id", "level", "reward_model", "extra_info")}), max_size=3), junk=st.binary(max_size=30))
def test_any_json_is_read_or_refused_in_words(tmp_path, rows, junk):
    good = dict(question="How long?", answer="4")
    (tmp_path/"any.jsonl").write_bytes(b"\n".join([json.dumps(good).encode(), *(json.dumps(r).encode() for r in rows), junk.replace(b"\n", b""), b""]))
    try: got = load_problems(tmp_path/"any.jsonl")
    except ValueError as e: assert "any.jsonl" in str(e) and ("the columns are" in str(e) or "none of its" in str(e))
    else: assert got.counts["usable"] + got.counts["skipped"] == got.counts["rows"] and not any(s["kind"] == "unreadable row" for s in got.skipped)


# Rows

def test_json_and_csv_keep_what_is_written(tmp_path):
    (tmp_path/"a.jsonl").write_text('\ufeff{"answer": "1.50", "m": 1}\n\n{"answer": 7, "m": [1, "x"], "d": "2024-01-02"}\n{"answer": 0.1, "m": {"k": null}, "d": NaN}\n', encoding="utf-8")
    ds = read_rows(tmp_path/"a.jsonl")
    assert ds["answer"][:] == ["1.50", "7", "0.1"] and ds["m"][:] == [1, [1, "x"], {"k": None}] and ds["d"][:] == [None, "2024-01-02", None]
    (tmp_path/"b.json").write_text('[{"a": "05"}, {"a": 12345678901234567890123}]')
    assert read_rows(tmp_path/"b.json")["a"][:] == ["05", "12345678901234567890123"]
    (tmp_path/"c.tsv").write_text("q\tanswer\n\"a\tb\"\tNone\nx\t007\n")
    assert read_rows(tmp_path/"c.tsv")[:] == dict(q=["a\tb", "x"], answer=["None", "007"])


def test_folders_splits_and_configurations(tmp_path):
    assert [len(read_rows(FIXTURES/"hub", split=s, name=n)) for n in ("all", "easy") for s in ("train", "test")] == [5, 1, 2, 1] and len(read_rows(FIXTURES/"hub", name="easy")) == 2
    for how, said in ((dict(), "all.*easy"), (dict(name="hard"), "hard"), (dict(name="all", split="dev"), "dev")):
        with pytest.raises(ValueError, match=said): read_rows(FIXTURES/"hub", **how)
    for name in ("train", "validation-0", "testmini", "other/test"): lines([dict(a=name)], tmp_path/f"{name}.jsonl")
    assert [read_rows(tmp_path, split=s)["a"][0] for s in (None, "train", "validation", "testmini", "test")] == ["train", "train", "validation-0", "testmini", "other/test"]
    with pytest.raises(ValueError, match="no split 'dev'; it has"): read_rows(tmp_path, split="dev")
    assert len(read_rows(FIXTURES/"easyr1.parquet", split="anything")) == N                  # a single file is the split that you call it
    both = datasets.DatasetDict(train=read_rows(FIXTURES/"easyr1.parquet"), test=read_rows(FIXTURES/"easyr1.parquet").select([0])); both.save_to_disk(tmp_path/"two")
    assert len(read_rows(tmp_path/"two")) == N and len(read_rows(tmp_path/"two", split="test")) == 1
    with pytest.raises(ValueError, match="train, test"): read_rows(tmp_path/"two", split="dev")


def test_no_code_of_a_data_set_is_run(tmp_path, monkeypatch):
    (tmp_path/"set").mkdir()
    (tmp_path/"set/set.py").write_text(f"open({str(tmp_path/'ran')!r}, 'w')")
    with pytest.raises(ValueError, match="holds no data file"): read_rows(tmp_path/"set")
    (tmp_path/"set/README.md").write_text("---\nconfigs:\n- config_name: a\n  data_files: set.py\n---\n")
    with pytest.raises((ValueError, FileNotFoundError)): read_rows(tmp_path/"set")
    for name in ("pickle.pkl", "rows.pt", "rows.npy"):
        (tmp_path/name).write_bytes(b"\x80\x04.")
        with pytest.raises(ValueError, match="unknown suffix"): read_rows(tmp_path/name)
    assert not (tmp_path/"ran").exists()


@pytest.mark.parametrize("error, cls, said", [
    (datasets.exceptions.DatasetNotFoundError("Dataset 'a/b' is a gated dataset on the Hub. You must be authenticated to access it."), FileNotFoundError, "hf auth login"),
    (datasets.exceptions.DatasetNotFoundError("Dataset 'a/b' doesn't exist on the Hub or cannot be accessed."), FileNotFoundError, "Check the spelling"),
    (ConnectionError("Couldn't reach 'a/b' on the Hub (ConnectTimeout)"), FileNotFoundError, "local copy"),
    (RuntimeError("Dataset scripts are no longer supported, but found b.py"), ValueError, "never run"),
    (ValueError("Config name is missing.\nPlease pick one among the available configs: ['x', 'y']"), ValueError, "'x', 'y'.*with name")])
def test_what_the_hub_says_in_one_line(monkeypatch, error, cls, said):
    def fail(*a, **k): raise error
    monkeypatch.setattr(datasets, "load_dataset", fail)
    with pytest.raises(cls, match=said) as e: read_rows("a/b")
    assert "\n" not in str(e.value) and "'a/b'" in str(e.value)


def test_wrong_places_are_told(tmp_path):
    for place in ("none.parquet", "./none", "a/b/c", "no such thing", str(tmp_path/"none")):
        with pytest.raises(FileNotFoundError, match="give a file, a folder or the id"): read_rows(place)
    with pytest.raises(FileNotFoundError, match="HF_HUB_OFFLINE"): read_rows("nobody/nothing")        # for real: tests are offline
    for name, bytes_ in (("junk.parquet", b"junk"), ("cut.parquet", (FIXTURES/"easyr1.parquet").read_bytes()[:3000]), ("junk.arrow", b"\xff"*64), ("empty.csv", b""), ("empty.jsonl", b"\n"), ("latin.csv", "a,é\n".encode("latin-1")), ("deep.json", b"["*100_000)):
        (tmp_path/name).write_bytes(bytes_)
        with pytest.raises(ValueError, match=name): read_rows(tmp_path/name)
    with pytest.raises(ValueError, match="bad.jsonl, row 2: not JSON"):
        (tmp_path/"bad.jsonl").write_text('{"a": 1}\n{"a"\n'); read_rows(tmp_path/"bad.jsonl")


# The report

def test_check_file_reports_what_training_would_meet(tmp_path, capsys, tiny):
    check_file(str(FIXTURES/"plain/faulty.jsonl"), model=str(tiny), max_prompt_tokens=60, skipped=str(tmp_path/"skipped.jsonl"))
    said = capsys.readouterr().out
    for part in ("faulty.jsonl: columns, 3 problems of 13 rows", "3 bad image", "row 2: 'images/none.png' is missing", "experts: 2 of 3 (66.7%); right by the verifier: 1 of 2 (50.0%)", "read as: question from question",
                 "prompts: ", "tokens", "the first problem, faulty-1", "columns: question, answer, image, expert, level, options", "skipped.jsonl"): assert part in said, part
    assert len((tmp_path/"skipped.jsonl").read_text().splitlines()) == 10
    check_file(str(FIXTURES/"mapped.csv"), map=CSV_MAP, limit=2)
    assert "2 problems of 2 rows" in capsys.readouterr().out
    with pytest.raises(ValueError, match="none of its 1 rows"):
        lines([dict(question="?", answer="")], tmp_path/"a.jsonl"); check_file(str(tmp_path/"a.jsonl"))
    with pytest.raises(FileNotFoundError, match="no processor at"): check_file(str(FIXTURES/"mapped.csv"), model=str(tmp_path))
