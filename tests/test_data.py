"""Data: every format that people train from, every row that cannot be used, and files that mean
harm."""
import base64
import io
import json
import os
import random
import shutil
from dataclasses import replace
from pathlib import Path

import datasets
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image

from calibrl.data import (
    FileProblem, as_images, check, check_file, detect, load_problems, parse_map, pictures,
    read_rows)
from calibrl.data.rows import cell_images
from calibrl.tasks import Problem, messages, score
from make_fixtures import FIXTURES, N, lines, make, parquet, png, problems

GOOD = dict(question="How long?", answer="4")
CSV_MAP = "question=aufgabe,answer=ergebnis,images=bild,expert=weg,level=stufe"
CASES = [
    ("virl39k", "ViRL39K", {}),
    ("virl39k/39Krelease.parquet", "ViRL39K", {}),
    ("geometry3k.parquet", "Geometry3K", {}),
    ("easyr1.parquet", "EasyR1", {}),
    ("verl_text.parquet", "verl", {}),
    ("verl_list.parquet", "verl", {}),
    ("verl_record.parquet", "verl", {}),
    ("trl_messages.parquet", "TRL", {}),
    ("plain/trl_text.jsonl", "TRL", {}),
    ("plain/problems.jsonl", "columns", {}),
    ("mapped.csv", "columns", dict(map=CSV_MAP)),
    ("saved", "EasyR1", {}),
    ("hub", "EasyR1", dict(name="all")),
    ("hub", "EasyR1", dict(name="easy", split="test"))]


def plain(width, height=None, color="black"):
    "A picture of one colour."
    return Image.new("RGB", (width, height or width), color)


def cell(width, height=None):
    "A picture as a table holds it."
    return dict(bytes=png(plain(width, height)), path=None)


def table_of(*rows):
    return datasets.Dataset.from_list(list(rows))


def of(*rows, **how):
    "The problems of these rows."
    return load_problems(table_of(*rows), **how)


pytestmark = pytest.mark.usefixtures("table_cache")


@pytest.fixture(scope="module")
def drawn():
    return problems()


# Formats

@pytest.mark.parametrize("file, format, how", CASES, ids=lambda v: str(v))
def test_each_format_gives_the_problems_that_were_drawn(file, format, how, drawn):
    got = load_problems(FIXTURES/file, on_bad="fail", **how)
    if how.get("name"):
        drawn = drawn[:1] if how.get("split") == "test" else drawn[1:]
    assert got.format == format
    assert len(got) == len(drawn) == len({read.id for read in got})

    for old, read in zip(drawn, got, strict=True):
        assert isinstance(read, Problem)
        assert read.question.removeprefix("<image>") == old.question
        assert read.answer == old.answer
        assert read.images[0].mode == "RGB"
        assert as_images(png(old.images[0]))[0].tobytes() == read.images[0].tobytes()
        parts = messages(read)[0]["content"]
        assert [part["type"] for part in parts] == ["image", "text"]
        assert parts[0]["image"].size == old.images[0].size
        if got.counts["experts"]:
            verdict = score(read.expert, read.answer)
            assert verdict.correct and verdict.formatted

    without = format in ("ViRL39K", "Geometry3K", "EasyR1")
    assert got.counts["experts"] == got.counts["verified"] == (0 if without else len(got))


def files_below(folder):
    "Names of all files, from the folder on."
    return sorted(p.relative_to(folder).as_posix() for p in folder.rglob("*") if p.is_file())


def pixels(rows):
    "Rows with pictures as pixels, so that another version of zlib does not count."
    return [{name: seen(value) for name, value in row.items()} for row in rows]


def seen(value):
    "A value of a row, whose pictures are pixels."
    if isinstance(value, dict) and value.get("bytes"):
        return as_images(value)[0].tobytes()
    if isinstance(value, list):
        return [seen(v) for v in value]
    return value


def test_fixtures_are_what_the_script_makes(tmp_path):
    make(tmp_path)
    names = files_below(FIXTURES)
    assert files_below(tmp_path) == names
    assert sum((FIXTURES/name).stat().st_size for name in names) < 300_000
    for name in names:
        made, kept = tmp_path/name, FIXTURES/name
        if name.endswith(".parquet"):
            assert pixels(read_rows(made)) == pixels(read_rows(kept)), name
        elif name.endswith((".jsonl", ".csv", ".md")):
            assert made.read_text() == kept.read_text(), name
        elif name.endswith(".png") and "broken" not in name:
            assert as_images(made)[0].tobytes() == as_images(kept)[0].tobytes(), name


def test_verl_takes_the_bare_question_and_says_what_it_left_out(tmp_path, drawn):
    got = load_problems(FIXTURES/"verl_text.parquet")
    assert not any("boxed" in p.question for p in got)
    assert got.counts["boxed"] == 0
    assert got[0].tags == {"data_source": "drawn/geometry"}

    # rows without the bare question, and with a system prompt
    rows = read_rows(FIXTURES/"verl_text.parquet").remove_columns("extra_info").to_list()
    for i, row in enumerate(rows):
        row["prompt"].insert(0, dict(role="system", content="Box the answer."))
        row["pass_ratio"] = float(i > 0)
    parquet(rows, tmp_path/"bare.parquet")
    got = load_problems(tmp_path/"bare.parquet")
    assert got.counts["boxed"] == got.counts["system"] == N
    assert "\\boxed" in str(got) and "system" in str(got)

    # pass_ratio 0: the authors' loader passes over the expert
    assert [p.expert is None for p in got] == [True] + [False]*(N - 1)


def test_formats_are_told_by_their_columns():
    verl = dict.fromkeys(["prompt", "reward_model", "images"], {"ground_truth": 1})
    assert detect(verl)[1]["answer"] == "reward_model.ground_truth"
    row = dict(question=1, answer=1)
    fields = dict(question="question", answer="answer", kind="question")
    assert detect(row, {"expert": "", "kind": "question"}) == ("columns", fields)
    assert parse_map("a=b, c = d,") == dict(a="b", c="d")
    assert parse_map(None) == {} and parse_map(dict(a="b")) == dict(a="b")
    for columns, how, why in ((dict(frage=1, loesung=1), None, "frage, loesung"),
                              (dict(problem=1), None, "answer=NAME"),
                              (dict(problem=1, answer=1), "expert=way", "no such column"),
                              ({}, None, r"\(none\)")):
        with pytest.raises(ValueError, match=why):
            detect(columns, how)
    with pytest.raises(ValueError, match="question=problem,expert=solution"):
        parse_map("expert")


def test_options_labels_and_text_only_rows():
    labelled = of(dict(question="Which?", choices=["4 cm", "5 cm"], label=1))[0]
    assert (labelled.answer, labelled.options) == ("B", ("4 cm", "5 cm"))
    text_only = of(dict(question="What is 2+2?", answer=4.0))[0]
    assert (text_only.answer, text_only.images, text_only.options) == ("4", (), None)
    choice = dict(question="Which?", answer="B")
    listed = of(choice | dict(options=["x", "y"]))[0]
    assert (listed.answer, listed.options) == ("B", ("x", "y"))
    lettered = [choice | dict(options=letters)
                for letters in (dict(A="x", B="y"), dict(A="x", B="y", C="z"))]
    assert [p.options for p in of(*lettered)] == [("x", "y"), ("x", "y", "z")]

    # one text is no list of choices
    text = dict(question="Which?", options="x or y", answer="x")
    assert of(text, map="options=")[0].options is None
    with pytest.raises(ValueError, match="bad options: they are str, not a list"):
        of(text)


@pytest.mark.parametrize("solution, expert", [
    ("24", None),
    ("$24$", None),
    (r"\boxed{24}", None),
    ("<answer>24</answer>", None),
    ("4*6\n#### 24", "<think>4*6\n#### 24</think><answer>24</answer>"),
    ("<think>4*6</think><answer>24</answer>", "<think>4*6</think><answer>24</answer>"),
    ("x"*300 + r" \boxed{24}", f"<think>{'x'*300} \\boxed{{24}}</think><answer>24</answer>")])
def test_a_solution_alone_is_answer_and_expert(solution, expert):
    got = of(dict(problem="How much?", solution=solution))[0]
    assert (got.answer.strip("$"), got.expert) == ("24", expert)


def test_a_solution_beside_the_answer_gets_tags_around_its_own_conclusion():
    def expert(solution):
        return of(dict(problem="How much?", answer=r"\frac{1}{2}", solution=solution))[0].expert

    text = r"It is \boxed{\frac{1}{2}}."
    assert expert(text) == rf"<think>{text}</think><answer>\frac{{1}}{{2}}</answer>"
    assert expert(r"It is \boxed{3}.").endswith("<answer>3</answer>")      # a wrong one stays wrong
    text = r"<think>half</think> So \boxed{0.5}"
    assert expert(text) == text + "\n<answer>0.5</answer>"
    assert expert("I do not know.") == "I do not know."
    assert expert(r"\boxed{\frac{1}{2}}") is None


def test_experts_that_are_missing_or_wrong():
    right, wrong = (f"<think>a</think><answer>{x}</answer>" for x in "45")
    rows = [GOOD | dict(expert=expert) for expert in (right, wrong, None, " ")]

    def experts(**how):
        return [p.expert and p.expert[-10] for p in of(*rows, **how)]

    assert experts() == ["4", "5", None, None]
    assert experts(wrong_expert="drop") == ["4", None, None, None]
    assert experts(wrong_expert="skip") == ["4", None, None]
    assert experts(need_expert=True) == ["4", "5"]
    assert experts(need_expert=True, wrong_expert="drop") == ["4"]
    assert of(*rows).counts["verified"] == 1
    with pytest.raises(ValueError, match="wrong_expert must be"):
        of(*rows, wrong_expert="hide")


# Rows that cannot be used

FAULTY = FIXTURES/"plain/faulty.jsonl"
FAULTS = {2: "bad image", 3: "bad image", 4: "bad image", 5: "no answer", 6: "no answer",
          7: "image tokens", 8: "control token", 9: "no question", 12: "no answer",
          13: "unreadable line"}


def test_every_row_left_out_is_named(tmp_path, caplog):
    got = load_problems(FAULTY, skipped=tmp_path/"skipped.jsonl")
    assert (got.counts["rows"], got.counts["skipped"], len(got)) == (13, 10, 3)
    log = rows_of(tmp_path/"skipped.jsonl")
    assert log == got.skipped
    assert {entry["row"]: entry["kind"] for entry in log} == FAULTS
    assert all(entry["file"] == str(FAULTY) for entry in log)
    assert all(entry["reason"].startswith(entry["kind"]) for entry in log)
    for said in ("3 problems of 13 rows", "bad image 3", "skipped.jsonl", "1 of 2 (50.0%)"):
        assert said in caplog.text

    # or the first of them ends it
    why = r"faulty.jsonl, row 2: bad image: 'images/none.png' is missing"
    with pytest.raises(ValueError, match=why):
        load_problems(FAULTY, on_bad="fail")
    with pytest.raises(ValueError, match="on_bad must be skip or fail"):
        load_problems(FAULTY, on_bad="ignore")


def rows_of(file):
    "The rows of a JSON Lines file, as they are."
    return [json.loads(line) for line in Path(file).read_text("utf-8").splitlines()]


def places(got):
    "Name of the file and number of each row that was left out."
    return [(Path(entry["file"]).name, entry["row"]) for entry in got.skipped]


def test_rows_are_counted_in_their_own_file(tmp_path):
    lines([GOOD, GOOD], tmp_path/"a.jsonl")
    lines([GOOD, GOOD | dict(answer=None), GOOD], tmp_path/"b.jsonl")
    got = load_problems(tmp_path)
    assert places(got) == [("b.jsonl", 2)]
    assert got.skipped[0]["file"] == str(tmp_path/"b.jsonl")
    assert [p.id for p in got] == ["a-1", "a-2", "b-1", "b-3"]

    # shards of one table, whose ids repeat and are told apart
    names = [f"train-0000{i}-of-00002.parquet" for i in range(2)]
    for name in names:
        rows = [GOOD | dict(answer=answer, id="same") for answer in ("0", "", "2")]
        parquet(rows, tmp_path/"shards"/name)
    got = load_problems(tmp_path/"shards")
    assert places(got) == [(name, 2) for name in names]
    assert len({p.id for p in got}) == len(got) == 4


def test_nothing_usable_is_an_error_that_says_how_it_was_read(tmp_path):
    lines([GOOD | dict(answer="", x=1)]*3, tmp_path/"a.jsonl")
    why = ("none of its 3 rows can be used: no answer 3; row 1, "
           ".*read as columns, question=question, answer=answer")
    with pytest.raises(ValueError, match=why):
        load_problems(tmp_path/"a.jsonl")
    with pytest.raises(ValueError, match="limit must be at least 1"):
        load_problems(tmp_path/"a.jsonl", limit=0)
    lines([dict(frage="How long?", x=1)], tmp_path/"b.jsonl")
    why = r"b.jsonl: no column holds the question: .* the columns are frage, x"
    with pytest.raises(ValueError, match=why):
        load_problems(tmp_path/"b.jsonl")


def test_prompts_too_long_are_refused_not_cut(checkpoint):
    from transformers import AutoProcessor
    from calibrl.rollout import encode
    processor = AutoProcessor.from_pretrained(checkpoint("qwen2_5_vl"))
    pictured = GOOD | dict(images=[cell(84)])
    rows = [pictured, pictured, pictured | dict(question="How long? "*40)]

    # lengths are those of the encoded prompts
    got = of(*rows, processor=processor)
    long = max(got.lengths)
    assert [encode(processor, p)["input_ids"].shape[1] for p in got] == got.lengths
    assert long > min(got.lengths) + 300

    # one token less, and the long one is left out whole
    few = of(*rows, processor=processor, max_prompt_tokens=long - 1)
    assert [p.id for p in few] == ["dataset-1", "dataset-2"]
    why = f"prompt too long: {long} tokens, more than {long - 1}"
    assert few.skipped[0]["reason"] == why
    pad = processor.tokenizer.convert_tokens_to_ids("<|image_pad|>")
    assert (encode(processor, few[0])["input_ids"] == pad).sum() == 9

    # a picture beyond what the processors take, and a control token of this tokenizer alone
    thin = GOOD | dict(images=[cell(3000, 4)])
    assert of(pictured, thin).kinds == {"bad image": 1}
    unknown = pictured | dict(question="What is <unk>?")
    assert of(pictured, unknown).kinds == {}
    assert of(pictured, unknown, processor=processor).kinds == {"control token": 1}

    # a model without eyes, and no processor at all
    text = AutoProcessor.from_pretrained(checkpoint("qwen3"))
    with pytest.raises(ValueError, match="the model reads text only"):
        of(pictured, processor=text)
    with pytest.raises(ValueError, match="needs a processor"):
        of(pictured, max_prompt_tokens=10)


@pytest.mark.parametrize("token", [
    "<|image_pad|>", "<|im_end|>", "<|vision_start|>", "<IMG_CONTEXT>", "<img>"])
def test_control_tokens_are_refused_wherever_they_stand(token):
    good = GOOD | dict(expert="<think>2+2</think><answer>4</answer>", options=["4", "5"])
    for bad in (dict(question=good["question"] + token), dict(expert=good["expert"] + token),
                dict(options=["4", token])):
        assert of(good, good | bad).kinds == {"control token": 1}
    for mathematics in ("Is <|x|> positive?", "a <b> c", "x<|y| and |y|>z"):
        assert len(of(good | dict(question=mathematics))) == 1


def test_paths_start_at_the_file_then_at_the_source(tmp_path):
    for folder in ("data/pics", "pics"):
        (tmp_path/folder).mkdir(parents=True)
    (tmp_path/"data/pics/a.png").write_bytes(png(plain(30)))
    (tmp_path/"pics/b.png").write_bytes(png(plain(40)))
    lines([GOOD | dict(image=f"pics/{x}.png") for x in "ab"], tmp_path/"data/train.jsonl")

    def sizes(**how):
        return [p.images[0].size for p in load_problems(tmp_path, **how)]

    assert sizes() == [(30, 30), (40, 40)]
    assert sizes(root=tmp_path/"data") == [(30, 30)]
    # the file alone may not leave its folder
    assert load_problems(tmp_path/"data/train.jsonl").kinds == {"bad image": 1}


@pytest.mark.parametrize("placeholders, pictures", [
    (0, 0), (0, 2), (1, 1), (2, 2), (1, 0), (2, 1), (1, 2)])
def test_placeholders_and_pictures_match_or_the_row_is_refused(placeholders, pictures):
    row = dict(question="<image>"*placeholders + "How long?", answer="4",
               images=[cell(30)]*pictures)
    expected = {} if placeholders in (0, pictures) else {"image tokens": 1}
    assert of(row, GOOD | dict(images=[]), limit=2).kinds == expected


def test_packed_pictures_are_pointed_at(tmp_path):
    shutil.copy(FIXTURES/"virl39k/39Krelease.parquet", tmp_path)
    (tmp_path/"images.zip").write_bytes(b"PK")
    with pytest.raises(ValueError, match="bad image 6.*images.zip: unpack it there"):
        load_problems(tmp_path)
    assert len(load_problems(tmp_path, root=FIXTURES/"virl39k")) == N


# Problems that wait

def test_pictures_wait_until_they_are_asked_for(monkeypatch):
    got = load_problems(FIXTURES/"easyr1.parquet")
    cell_images.cache_clear()
    decoded = []
    decode = pictures.decode
    monkeypatch.setattr(pictures, "decode", lambda data: decoded.append(1) or decode(data))
    shuffled = random.Random(0).sample(list(got), len(got))
    assert not decoded and all(p.waits for p in shuffled)

    # one step asks several times, and each is decoded once
    for _ in range(3):
        assert got[0].images
    assert len(decoded) == 1
    other = replace(got[1], expert="<answer>1</answer>")
    assert type(other) is FileProblem
    assert other.images[0].tobytes() == got[1].images[0].tobytes()
    assert cell_images.cache_info().maxsize == 32


def test_a_picture_that_went_away_is_named_when_it_is_asked_for(tmp_path):
    shutil.copytree(FIXTURES/"plain", tmp_path/"plain")
    problem = load_problems(tmp_path/"plain/problems.jsonl")[2]
    (tmp_path/"plain/images/2.png").unlink()
    why = r"problems.jsonl, row 3: image 'images/2.png' is missing"
    with pytest.raises(ValueError, match=why):
        _ = problem.images


def test_problems_of_a_file_can_be_rolled_out(policy):
    from calibrl.rollout import rollout
    got = load_problems(FAULTY, map="options=")
    ro = rollout(policy, got[:2], n=2, max_new_tokens=4)
    assert ro.has_expert.tolist() == [True, True, False, False]
    assert len(ro.texts) == 4


# Pictures

WHITE = (255, 255, 255)


def stored(image, kind="PNG", **how):
    "The bytes of a picture in a format."
    out = io.BytesIO()
    image.save(out, kind, **how)
    return out.getvalue()


def corner(data):
    "The first pixel of a picture as it is read."
    return as_images(data)[0].getpixel((0, 0))


def test_pictures_of_every_mode_become_rgb_on_white():
    clear = Image.new("RGBA", (8, 8), (0, 0, 0, 0))
    palette = clear.convert("P")
    palette.info["transparency"] = palette.getpixel((0, 0))
    for picture in (
            clear, stored(clear), stored(clear, "WEBP", lossless=True),
            stored(Image.new("LA", (8, 8), (0, 0))),
            stored(palette, transparency=palette.getpixel((0, 0)))):
        assert corner(picture) == WHITE

    # without transparency
    assert corner(stored(Image.new("I;16", (8, 8), 32768))) in {(127,)*3, (128,)*3}
    assert corner(stored(Image.new("1", (8, 8), 1))) == WHITE
    assert corner(stored(Image.new("L", (8, 8), 9))) == (9,)*3
    red = corner(stored(Image.new("CMYK", (8, 8), (0, 255, 255, 0)), "JPEG"))
    assert max(abs(a - b) for a, b in zip(red, (255, 0, 0), strict=True)) < 12

    # the first of several, and one that its camera turned
    two = stored(plain(8, color="red"), "GIF", save_all=True,
                 append_images=[plain(8, color="blue")])
    assert corner(two) == (255, 0, 0)
    turned = plain(20, 10)
    exif = turned.getexif()
    exif[274] = 6
    assert as_images(stored(turned, "JPEG", exif=exif))[0].size == (10, 20)


def hostile(outside):
    "What a cell may hold that is no picture of its folder, and why it is refused."
    leaves = [f"../{outside.name}", str(outside), f"x/../../{outside.name}", f"file://{outside}",
              {"path": f"../{outside.name}"}]
    return {
        "leaves the folder": leaves,
        "missing": ["pipe.png", ".", "a\0b.png", "x"*900],
        "nor base64": ["x"*5001, "data:image/png;base64,@@", "@"*2000],
        "known format": ["run.eps"],
        "web address": ["https://example.org/x.png", "ftp://example.org/x.png"],
        "without bytes or path": [{"bytes": None, "path": None}],
        "without bytes": [{}],
        "int, not a picture": [7],
        "more than 100": [[None]*101],
        "not base64": ["data:text/plain,hi"]}


def test_files_that_mean_harm(tmp_path, monkeypatch):
    folder, secret = tmp_path/"in", tmp_path/"secret.png"
    folder.mkdir()
    secret.write_bytes(stored(plain(8)))
    (folder/"ok.png").write_bytes(stored(plain(8)))
    (folder/"same.png").symlink_to("ok.png")
    (folder/"mine.png").symlink_to(secret)
    os.mkfifo(folder/"pipe.png")
    (folder/"run.eps").write_bytes(
        b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 10 10\n%%EndComments\nshowpage\n")

    # what lies in the folder, by any name, and what does not
    own = ["ok.png", "./x/../ok.png", "same.png", str(folder/"ok.png"), None]
    assert len(as_images(own, folder)) == 4
    with pytest.raises(ValueError, match="leaves the folder"):
        as_images("mine.png", folder)
    for why, values in hostile(secret).items():
        for value in values:
            with pytest.raises(ValueError, match=why):
                as_images(value, folder)

    # 81 million pixels in some 10 kB
    bomb = Image.new("1", (9000, 9000))
    assert len(stored(bomb)) < 50_000
    for picture, why in ((stored(bomb), "9000 x 9000 pixels"), (bomb, "pixels"),
                         (b"P5 60000 60000 255\n", "more than 50,000,000")):
        with pytest.raises(ValueError, match=why):
            as_images(picture)
    monkeypatch.setattr(pictures, "MAX_BYTES", 10)
    with pytest.raises(ValueError, match="larger than 10 bytes"):
        as_images("ok.png", folder)


@settings(max_examples=150, deadline=None)
@given(st.sampled_from(["PNG", "JPEG", "GIF", "WEBP", "BMP", "TIFF", "PPM"]), st.data())
def test_a_damaged_picture_is_a_picture_or_a_reason(kind, data):
    noise = random.Random(0).randbytes(24*24*3)
    damaged = bytearray(stored(Image.frombytes("RGB", (24, 24), noise), kind))
    for _ in range(data.draw(st.integers(1, 6))):
        place = data.draw(st.integers(0, len(damaged) - 1))
        damaged[place] = data.draw(st.integers(0, 255))
    damaged = bytes(damaged[:data.draw(st.integers(0, len(damaged)))])
    try:
        assert all(image.mode == "RGB" for image in as_images(damaged))
    except ValueError as e:
        assert str(e).startswith("image")


SIMPLE = (st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=12)
          | st.sampled_from(["images/0.png", "<image>", r"\boxed{", "<answer>4</answer>",
                             "\ud800", "4"]))
KEYS = st.sampled_from(["role", "content", "type", "bytes", "path", "x"])
ANY = st.recursive(
    SIMPLE, lambda inner: st.lists(inner, max_size=3) | st.dictionaries(KEYS, inner, max_size=3),
    max_leaves=6)
COLUMNS = ("question", "prompt", "answer", "images", "solution", "options", "id", "level",
           "reward_model", "extra_info")
ROWS = st.fixed_dictionaries({}, optional=dict.fromkeys(COLUMNS, ANY))


@settings(max_examples=120, deadline=None,
          suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(rows=st.lists(ROWS, max_size=3), junk=st.binary(max_size=30))
def test_any_json_is_read_or_refused_in_words(tmp_path, rows, junk):
    written = [json.dumps(row).encode() for row in [GOOD, *rows]]
    file = tmp_path/"any.jsonl"
    file.write_bytes(b"\n".join([*written, junk.replace(b"\n", b""), b""]))
    try:
        got = load_problems(file)
    except ValueError as e:
        assert "any.jsonl" in str(e)
        assert "the columns are" in str(e) or "none of its" in str(e)
    else:
        assert got.counts["usable"] + got.counts["skipped"] == got.counts["rows"]
        assert "unreadable row" not in {entry["kind"] for entry in got.skipped}


# Rows

def test_json_and_csv_keep_what_is_written(tmp_path):
    (tmp_path/"a.jsonl").write_text(
        '\ufeff{"answer": "1.50", "m": 1}\n\n'
        '{"answer": 7, "m": [1, "x"], "d": "2024-01-02"}\n'
        '{"answer": 0.1, "m": {"k": null}, "d": NaN}\n', encoding="utf-8")
    rows = read_rows(tmp_path/"a.jsonl")
    assert rows["answer"][:] == ["1.50", "7", "0.1"]
    assert rows["m"][:] == [1, [1, "x"], {"k": None}]
    assert rows["d"][:] == [None, "2024-01-02", None]

    (tmp_path/"b.json").write_text('[{"a": "05"}, {"a": 12345678901234567890123}]')
    assert read_rows(tmp_path/"b.json")["a"][:] == ["05", "12345678901234567890123"]
    (tmp_path/"c.tsv").write_text("q\tanswer\tn\n\"a\tb\"\tNone\t1.50\nx\t007\t02\n")
    columns = dict(q=["a\tb", "x"], answer=["None", "007"], n=["1.50", "02"])
    assert read_rows(tmp_path/"c.tsv")[:] == columns


def test_folders_splits_and_configurations(tmp_path):
    # configurations of a card
    for name, split, rows in (("all", "train", 5), ("all", "test", 1), ("easy", "train", 2),
                              ("easy", "test", 1), ("easy", None, 2)):
        assert len(read_rows(FIXTURES/"hub", split=split, name=name)) == rows
    for how, why in ((dict(), "all.*easy"), (dict(name="hard"), "hard"),
                     (dict(name="all", split="dev"), "dev")):
        with pytest.raises(ValueError, match=why):
            read_rows(FIXTURES/"hub", **how)

    # splits that files name, the short way and the long one
    lines([dict(a=1)], tmp_path/"short/val.jsonl")
    lines([dict(a=2)], tmp_path/"short/train.jsonl")
    assert read_rows(tmp_path/"short", split="validation")["a"][:] == [1]
    for name in ("train", "validation-0", "testmini", "other/test"):
        lines([dict(a=name)], tmp_path/"long"/f"{name}.jsonl")
    for split, name in ((None, "train"), ("train", "train"), ("validation", "validation-0"),
                        ("testmini", "testmini"), ("test", "other/test")):
        assert read_rows(tmp_path/"long", split=split)["a"][0] == name
    with pytest.raises(ValueError, match="no split 'dev'; it has"):
        read_rows(tmp_path/"long", split="dev")

    # a single file is the split that you call it
    table = read_rows(FIXTURES/"easyr1.parquet")
    assert len(read_rows(FIXTURES/"easyr1.parquet", split="anything")) == N
    both = datasets.DatasetDict(train=table, test=table.select([0]))
    both.save_to_disk(tmp_path/"two")
    assert len(read_rows(tmp_path/"two")) == N
    assert len(read_rows(tmp_path/"two", split="test")) == 1
    with pytest.raises(ValueError, match="train, test"):
        read_rows(tmp_path/"two", split="dev")


def test_no_code_of_a_data_set_is_run(tmp_path):
    (tmp_path/"set").mkdir()
    (tmp_path/"set/set.py").write_text(f"open({str(tmp_path/'ran')!r}, 'w')")
    with pytest.raises(ValueError, match="holds no data file"):
        read_rows(tmp_path/"set")
    card = "---\nconfigs:\n- config_name: a\n  data_files: set.py\n---\n"
    (tmp_path/"set/README.md").write_text(card)
    with pytest.raises((ValueError, FileNotFoundError)):
        read_rows(tmp_path/"set")
    for name in ("pickle.pkl", "rows.pt", "rows.npy"):
        (tmp_path/name).write_bytes(b"\x80\x04.")
        with pytest.raises(ValueError, match="unknown suffix"):
            read_rows(tmp_path/name)
    assert not (tmp_path/"ran").exists()


GATED = datasets.exceptions.DatasetNotFoundError(
    "Dataset 'a/b' is a gated dataset on the Hub. You must be authenticated to access it.")
UNKNOWN = datasets.exceptions.DatasetNotFoundError(
    "Dataset 'a/b' doesn't exist on the Hub or cannot be accessed.")
UNREACHED = ConnectionError("Couldn't reach 'a/b' on the Hub (ConnectTimeout)")
SCRIPT = RuntimeError("Dataset scripts are no longer supported, but found b.py")
UNNAMED = ValueError("Config name is missing.\n"
                     "Please pick one among the available configs: ['x', 'y']")


@pytest.mark.parametrize("error, cls, said", [
    (GATED, FileNotFoundError, "hf auth login"),
    (UNKNOWN, FileNotFoundError, "Check the spelling"),
    (UNREACHED, FileNotFoundError, "local copy"),
    (SCRIPT, ValueError, "never run"),
    (UNNAMED, ValueError, "'x', 'y'.*with name")])
def test_what_the_hub_says_in_one_line(monkeypatch, error, cls, said):
    def fail(*args, **how):
        raise error

    monkeypatch.setattr(datasets, "load_dataset", fail)
    with pytest.raises(cls, match=said) as e:
        read_rows("a/b")
    assert "\n" not in str(e.value) and "'a/b'" in str(e.value)


def test_wrong_places_are_told(tmp_path):
    for place in ("none.parquet", "./none", "a/b/c", "no such thing", str(tmp_path/"none")):
        with pytest.raises(FileNotFoundError, match="give a file, a folder or the id"):
            read_rows(place)
    with pytest.raises(FileNotFoundError, match="HF_HUB_OFFLINE"):
        read_rows("nobody/nothing")                                 # for real: tests are offline

    # files that are not what their names say
    cut = (FIXTURES/"easyr1.parquet").read_bytes()[:3000]
    for name, data in (("junk.parquet", b"junk"), ("cut.parquet", cut),
                       ("junk.arrow", b"\xff"*64), ("empty.csv", b""), ("empty.jsonl", b"\n"),
                       ("latin.csv", "a,é\n".encode("latin-1")), ("deep.json", b"["*100_000)):
        (tmp_path/name).write_bytes(data)
        with pytest.raises(ValueError, match=name):
            read_rows(tmp_path/name)
    (tmp_path/"bad.jsonl").write_text('{"a": 1}\n{"a"\n')
    with pytest.raises(ValueError, match="bad.jsonl, row 2: not JSON"):
        read_rows(tmp_path/"bad.jsonl")


# The report

REPORT = ("faulty.jsonl: columns, 3 problems of 13 rows",
          "left out: 10 rows: bad image 3, no answer 3", "row 2: 'images/none.png' is missing",
          "experts: 2 of 3 (66.7%); right by the verifier: 1 of 2 (50.0%)",
          "read as: question from question", "prompts: ", "tokens", "as the model will see it",
          "  image: images", "  level: tag level", "skipped.jsonl")


def test_check_file_reports_what_training_would_meet(tmp_path, capsys, tiny):
    with pytest.raises(ValueError, match="10 of 13 rows cannot be used, more than half"):
        check_file(str(FAULTY), model=str(tiny), max_prompt_tokens=60,
                   skipped=str(tmp_path/"skipped.jsonl"))
    said = capsys.readouterr().out
    for part in REPORT:
        assert part in said, part
    assert len(rows_of(tmp_path/"skipped.jsonl")) == 10
    check_file(str(FIXTURES/"mapped.csv"), map=CSV_MAP, limit=2)
    assert "2 problems of 2 rows" in capsys.readouterr().out

    # nothing usable, and no model
    lines([dict(question="?", answer="")], tmp_path/"a.jsonl")
    with pytest.raises(ValueError, match="none of its 1 rows"):
        check_file(str(tmp_path/"a.jsonl"))
    with pytest.raises(FileNotFoundError, match="no processor at"):
        check_file(str(FIXTURES/"mapped.csv"), model=str(tmp_path))


# Golds that count the choices

TEXTS = [["bathyal", "neritic", "pelagic", "benthic"], ["one day", "a week", "a month", "a year"]]


def quiz(golds, choices=TEXTS[0], column="answer", **more):
    "Rows of a quiz with these golds."
    return [{"question": "Which?", "choices": choices, column: gold, **more} for gold in golds]


def right_letters(problem):
    "The letters of the choices that count as right."
    letters = [chr(65 + i) for i in range(len(problem.options))]
    return [x for x in letters if score(f"<think></think><answer>{x}</answer>", problem.answer,
                                        problem.options).correct]


@pytest.mark.parametrize("rows, answers", [
    (quiz([1, 0, 3]), "BAD"),                                       # MMLU, ScienceQA: from 0
    (quiz(["1", "0", "3"]), "BAD"),                                 # AI2D: from 0, written as text
    (quiz([1.0, 0.0, 3.0]), "BAD"),
    (quiz([2, 1, 4]), "BAD"),                                       # from 1: the last is named
    (quiz([2, 1], subject="biology"), "CB"),                        # MMLU's own columns: from 0
    (quiz([1], column="label"), "B"),
    (quiz(["B", "A"]), "BA"),
    (quiz([0, 1, 3], list("2413")) + quiz([2]), "ABDC"),            # one row settles all
    (quiz([4, 30], [4, 30, 9, 12]), ["4", "30"]),                   # the value of a choice
    (quiz([4], ["4 cm", "30 cm"]), ["4"]),
    (quiz([0, 2], ["0", "1", "2", "3"]), "AC"),                     # both mean the same
    (quiz(["2", "x^2", "7"], ["x^2", "2", "7"]), ["2", "x^2", "7"])], ids=range(12))
def test_a_number_beside_choices_is_a_place_or_a_value_over_the_whole_column(rows, answers):
    got = of(*rows, on_bad="fail")
    assert [p.answer for p in got] == list(answers)
    for problem in got:
        assert len(right_letters(problem)) == 1


@pytest.mark.parametrize("rows", [
    quiz([2, 1]),                                                   # from 0 or from 1
    quiz([2], ["1", "2", "3", "4"]),                                # a place or a value
    quiz(["3"], ["1", "2", "3", "4"]),
    quiz([0, 4]),                                                   # neither from 0 nor from 1
    quiz([9, 12])], ids=range(5))
def test_a_number_that_may_be_either_is_refused_with_what_settles_it(rows):
    with pytest.raises(ValueError, match="answer_from_0=answer.*answer_from_1.*answer_value") as e:
        of(*rows)
    assert "\n" not in str(e.value) and "'answer'" in str(e.value)


def test_the_map_says_what_a_number_means():
    for how, answer in (("from_0", "C"), ("from_1", "B"), ("value", "2")):
        got = of(*quiz([2], ["1", "2", "3", "4"]), map=f"answer_{how}=answer")
        assert [p.answer for p in got] == [answer]
        assert not got[0].tags
        assert f"answer_{how} from answer" in check.report_text(got)

    # a row out of range is named
    got = of(*quiz([1, 7, -1]), map="answer_from_0=answer")
    assert [p.answer for p in got] == ["B"]
    assert got.kinds == {"no answer": 2}
    assert got.skipped[0]["reason"] == "no answer: 7 is none of 4 choices counted from 0"


def test_choices_in_other_shapes_are_read_or_refused():
    def one(choices, answer):
        return of(dict(question="Which?", choices=choices, answer=answer))[0]

    for choices in ("['one', \"it's two\"]", '["one", "it\'s two"]'):
        assert one(choices, "B").options == ("one", "it's two")
    arc = dict(text=["one", "two"], label=["1", "2"])
    assert (one(arc, "2").options, one(arc, "2").answer) == (("one", "two"), "B")
    for choices, answer in (("[__import__('os')]", "B"), (dict(text="one", label=["1"]), "1"),
                            ({"A": ["x"], "B": ["y"]}, "B"), (["x", " ", "y"], "A")):
        with pytest.raises(ValueError, match="bad options"):
            one(choices, answer)
    for answer in ("three", "C"):
        with pytest.raises(ValueError, match=f"'{answer}' is none of the choices"):
            one(["one", "two"], answer)
    assert one(["one", "two", "six"], "A, C").answer == "A, C"      # several letters


def test_a_place_among_choices_that_are_letters():
    rows = quiz([2], ["L", "R", "1/C", "C"]) + quiz([0])
    got = of(*rows, on_bad="fail")
    assert [right_letters(problem) for problem in got] == [["C"], ["A"]]


def test_a_class_label_is_its_name():
    label = datasets.ClassLabel(names=["A", "B", "C", "D"])
    table = table_of(*quiz([2, 1])).cast_column("answer", label)
    assert [p.answer for p in load_problems(table)] == ["C", "B"]
    label = datasets.ClassLabel(names=["even", "odd"])
    free = table_of(dict(question="Even or odd?", answer=1)).cast_column("answer", label)
    assert load_problems(free)[0].answer == "odd"


# Solutions that are no answer

def test_a_letter_in_correct_is_the_answer_and_the_rationale_the_expert():
    row = dict(question="How many?", options=["A)15", "B)24", "C)40"], correct="C",
               rationale="10% of 250 = 25\n1000/25 = 40\nC is the correct choice")
    got = of(row)
    assert (got[0].answer, got[0].options) == ("C", ("15", "24", "40"))
    assert got.fields["expert"] == "rationale" and got.counts["experts"] == 1
    with pytest.raises(ValueError, match="none of its 1 rows.*worked solution"):
        of({k: v for k, v in row.items() if k != "correct"})
    with pytest.raises(ValueError, match="no column holds the answer"):
        of(dict(question="How many?", correct=True))                # a verdict is no gold


@pytest.mark.parametrize("solution, answer", [
    (r"We have $2x = 8$, so $x = \boxed{4}$.", "4"),
    ("2*2 = <<2*2=4>>4\n#### 4", "4"),
    (r"First \boxed{4}. As said, it is $\boxed{ 4 }$.", "4"),
    ("24 cm", "24 cm"),
    ("$x = 4$", "$x = 4$"),
    (r"\angle ABC = 40", r"\angle ABC = 40"),
    ("isosceles triangle", "isosceles triangle"),
    (r"$\frac{1}{2}$", r"$\frac{1}{2}$")])
def test_a_solution_is_reduced_to_its_conclusion(solution, answer):
    assert of(dict(problem="How much?", solution=solution))[0].answer == answer


@pytest.mark.parametrize("solution", [
    "Since 2x = 8, we divide by 2. So x = 4.",
    "2x = 8 gives x = 4",
    "It must be four by symmetry",
    "$2x = 8 \\Rightarrow x = 4$",
    "3*4=12",
    "The answer is clear.\nx",
    "x = 2\ny = 3 x = 6",
    r"Either \boxed{3} or \boxed{4}.",
    "### Plan\n#### Step 1: add\n1+1\n#### Step 2: stop"])
def test_a_solution_without_one_conclusion_is_refused_by_name(solution):
    good = dict(problem="How much?", solution="$24$")
    got = of(good, dict(problem="How much?", solution=solution))
    assert len(got) == 1 and got.kinds == {"no answer": 1}
    reason = got.skipped[0]["reason"]
    assert "map" in reason or "several answers" in reason


def test_an_answer_column_that_holds_a_whole_solution_is_refused():
    text = "If each hen eats 3 cups, then 20 hens eat 60 cups. "
    good = dict(question="How?", answer="4")
    for long, why in ((text*5, "254 characters"),
                      ("It is 16*.5=<<16*.5=8>>8\nA: 8", "worked solution"),
                      (text*3, "worked solution")):
        got = of(good, good | dict(answer=long))
        assert got.kinds == {"no answer": 1} and why in got.skipped[0]["reason"]
    choice = "each molecule in one kind of serum reacts with one region of one antigen only " * 3
    assert of(good | dict(answer=choice, choices=[choice, "none"]))[0].answer == choice.strip()


# Pictures that nobody looks at

def test_objects_by_name_are_rows(tmp_path):
    (tmp_path/"images").mkdir()
    plain(30).save(tmp_path/"images/a.png")
    row = dict(imagename="images/a.png", question="Which?", answer="B")
    for indent in (None, 1):
        (tmp_path/"set.json").write_text(json.dumps(dict(v1=row, v2=row), indent=indent))
        got = load_problems(tmp_path/"set.json", on_bad="fail")
        assert [p.id for p in got] == ["v1", "v2"]
        assert len(got.sizes) == 2

    # an object that is no row, and lines of objects
    (tmp_path/"one.json").write_text(json.dumps(dict(version=1, data=[row]), indent=1))
    with pytest.raises(ValueError, match="one.json is one JSON object, not rows"):
        load_problems(tmp_path/"one.json")
    broken = '{"question": "Which?"\n{"question": "How?", "answer": "4"}\n'
    (tmp_path/"two.jsonl").write_text(broken)
    assert load_problems(tmp_path/"two.jsonl").kinds == {"unreadable line": 1}


@pytest.mark.parametrize("value", [
    "pics/a.png", "a.JPEG", ["a.webp"], "https://example.org/a.png", cell(9)], ids=str)
def test_a_column_of_pictures_that_no_field_reads_is_named(value):
    row = GOOD | dict(scan=value)
    with pytest.raises(ValueError, match="'scan' holds pictures.*images=NAME.*images= "):
        of(row)
    assert of(row, map="images=")[0].images == ()                   # asked without, as you say


@pytest.mark.parametrize("answer", ["B", "(A)", 0, 1, "1", 3])
def test_a_column_of_choices_that_no_field_reads_is_named(answer):
    row = dict(question="Which?", answer=answer)
    texts = TEXTS[0][:3]
    offered = row | dict(endings=texts)
    with pytest.raises(ValueError, match="'endings' holds choices.*options=NAME.*options= "):
        of(offered)
    assert of(offered, map="options=")[0].options is None
    assert of(row | dict(steps=texts, answer="7"))[0].answer == "7"    # names none of them
    assert of(row | dict(steps=texts[:1]))[0].options is None


def test_pictures_that_a_question_names_must_be_there():
    good = GOOD | dict(images=[])
    for mark in ("<image 1>", "<image1>"):
        got = of(good, good | dict(question=f"In {mark}, how long?"))
        assert got.kinds == {"image tokens": 1}
        assert mark in got.skipped[0]["reason"]
        got = of(good | dict(question=f"In {mark}, how long?", images=[cell(30)]))
        assert got[0].question == "In <image>, how long?"
        got = of(good | dict(options=[mark, "none"], answer="A"), good)
        assert got.kinds == {"image tokens": 1}
    some = of(good, good | dict(images=[cell(30)]))
    assert "note: 1 of 2 problems have no picture" in str(some)


# Files outside

@pytest.fixture
def outside(tmp_path):
    "A folder of data, and a picture and rows that lie outside it."
    (tmp_path/"in").mkdir()
    plain(31).save(tmp_path/"secret.png")
    lines([dict(question="Secret?", answer="4")], tmp_path/"secret.jsonl")
    return tmp_path


def refused(source, why, **how):
    "The reading stops in one line that says why."
    with pytest.raises((ValueError, FileNotFoundError), match=why) as e:
        load_problems(source, **how)
    assert "\n" not in str(e.value)


def test_a_file_named_without_a_folder_reads_nothing_outside(outside, monkeypatch):
    names = ("../secret.png", str(outside/"secret.png"), "link.png", "away/secret.png")
    lines([GOOD | dict(image=name) for name in names], outside/"in/a.jsonl")
    (outside/"in/link.png").symlink_to(outside/"secret.png")
    (outside/"in/away").symlink_to(outside, target_is_directory=True)
    monkeypatch.chdir(outside/"in")
    for source in ("a.jsonl", "./a.jsonl", ".", outside/"in/a.jsonl", Path("a.jsonl")):
        refused(source, "bad image 4; row 1, bad image: path '../secret.png' leaves the folder")
    lines([GOOD | dict(image="../secret.png"), GOOD], outside/"in/a.jsonl")
    assert len(load_problems("a.jsonl").skipped) == 1


def test_a_refusal_does_not_tell_what_lies_outside(outside):
    (outside/"in/gone.png").symlink_to(outside/"none.png")
    (outside/"in/there.png").symlink_to(outside/"secret.png")
    said = []
    for name in ("gone.png", "there.png", "../none.png", "../secret.png"):
        with pytest.raises(ValueError, match="leaves the folder") as e:
            as_images(name, outside/"in")
        said.append(str(e.value).replace(name, "X"))
    assert len(set(said)) == 1


def test_rows_of_a_hub_are_given_no_file(outside, monkeypatch):
    path = str(outside/"secret.png")
    monkeypatch.chdir(outside)
    for value in (path, "secret.png", [path], dict(bytes=None, path=path), f"file://{path}"):
        table = table_of(GOOD | dict(image=value))
        monkeypatch.setattr(datasets, "load_dataset", lambda *a, table=table, **k: table)
        for source in ("someone/pictures", table):
            refused(source, "bad image 1.*is not followed.*root")
        assert load_problems(table, root=outside)[0].images[0].size == (31, 31)
    whole = GOOD | dict(image=cell(9) | dict(path=path))
    assert of(whole)[0].images[0].size == (9, 9)


def test_the_folder_above_is_not_the_folder(outside):
    table = table_of(GOOD | dict(image="secret.png"))
    table.save_to_disk(outside/"in/saved")
    (outside/"in/secret.png").write_bytes((outside/"secret.png").read_bytes())
    refused(outside/"in/saved", "'secret.png' is missing in '.*saved'")


def test_a_copy_in_the_cache_of_a_hub_is_read(tmp_path):
    blobs = tmp_path/"datasets--a--b/blobs"
    copy = tmp_path/"datasets--a--b/snapshots/123"
    for folder in (blobs, copy/"pics"):
        folder.mkdir(parents=True)
    plain(31).save(blobs/"f00.png")
    lines([GOOD | dict(image="pics/a.png")], blobs/"ba4.jsonl")
    (copy/"pics/a.png").symlink_to("../../../blobs/f00.png")
    (copy/"train.jsonl").symlink_to("../../blobs/ba4.jsonl")
    for source in (copy, copy/"train.jsonl"):
        assert load_problems(source, on_bad="fail")[0].images[0].size == (31, 31)


@pytest.fixture
def no_network(monkeypatch):
    "Any attempt to look up or reach an address is kept; none succeeds."
    import socket

    import huggingface_hub
    asked = []

    def reach(*where, **how):
        asked.append(where)
        raise OSError("no network in this test")

    for name in ("connect", "connect_ex"):
        monkeypatch.setattr(socket.socket, name, reach)
    for name in ("create_connection", "getaddrinfo"):
        monkeypatch.setattr(socket, name, reach)
    for where in (huggingface_hub.constants, datasets.config):
        monkeypatch.setattr(where, "HF_HUB_OFFLINE", False)
    return asked


CARDS = ["https://example.org/rows.jsonl", "http://127.0.0.1:9/rows.jsonl",
         "hf://datasets/a/b/x.jsonl", "zip://x.jsonl::https://example.org/x.zip",
         "../secret.jsonl", "in/../../secret.jsonl", "OUT/secret.jsonl", "file://OUT/secret.jsonl",
         "../*.jsonl", "~/secret.jsonl", "link.jsonl"]


@pytest.mark.parametrize("kind", ["text", "list", "split", "map", "data_dir"])
@pytest.mark.parametrize("name", CARDS)
def test_a_card_chooses_nothing_outside_its_folder(outside, no_network, kind, name):
    (outside/"in/link.jsonl").symlink_to(outside/"secret.jsonl")
    name = name.replace("OUT", str(outside))
    entry = dict(
        text=dict(data_files=name),
        list=dict(data_files=["a.jsonl", name]),
        split=dict(data_files=[dict(split="train", path=[name])]),
        map=dict(data_files=dict(train=name)),
        data_dir=dict(data_dir=name))[kind]
    lines([GOOD], outside/"in/a.jsonl")
    card = f"---\nconfigs:\n- {json.dumps(dict(config_name='a', **entry))}\n---\nText.\n"
    (outside/"in/README.md").write_text(card)
    if (kind, name) == ("data_dir", "link.jsonl"):
        return                                                      # no folder: nothing is there
    refused(outside/"in", "names? inside|leads out")
    assert not no_network


def test_a_card_of_the_hub_chooses_no_file_of_yours(outside, no_network, monkeypatch):
    import huggingface_hub
    table = table_of(GOOD)
    monkeypatch.setattr(datasets, "load_dataset", lambda *a, **k: table)

    def download(repo, file, repo_type):
        if not (outside/file).exists():
            raise OSError(f"{repo} has no {file}")
        return str(outside/file)

    monkeypatch.setattr(huggingface_hub, "hf_hub_download", download)
    for file, head in (("README.md", "---\n"), (".huggingface.yaml", "")):
        for name in (str(outside/"secret.jsonl"), "https://example.org/x.jsonl"):
            (outside/file).write_text(f"{head}configs:\n- data_files: {name}\n{head}")
            refused("someone/rows", "only names inside")
        (outside/file).write_text(f"{head}configs:\n- data_files: data/*.jsonl\n{head}")
        assert len(load_problems("someone/rows")) == 1
        (outside/file).unlink()
    assert not no_network


def test_what_a_card_lists_is_read_from_the_folder(tmp_path, no_network):
    for name in ("x/train-0", "x/train-1", "y/deep/b", "c"):
        lines([dict(question=name, answer="4")], tmp_path/f"{name}.jsonl")
    entries = [dict(config_name="x", data_files="./x/train-*"),
               dict(config_name="y", data_files=[dict(split="test", path="y/**")]),
               dict(config_name="z", data_dir="x", default=True)]
    card = "---\n" + json.dumps(dict(configs=entries)) + "\n---\n"
    (tmp_path/"README.md").write_text(card)

    def read(**how):
        return [p.question for p in load_problems(tmp_path, **how)]

    assert read(name="x") == ["x/train-0", "x/train-1"]
    assert read(name="y") == ["y/deep/b"]
    assert read() == ["x/train-0", "x/train-1"]                     # the default

    # cards that cannot be followed
    for text, why in (("configs: [", "README.md cannot be read"), ("configs: 3", "lists no conf"),
                      ("configs:\n- data_files: none*", "holds no data file"),
                      ("configs:\n- config_name: a\n  sep: ';'\n  data_files: c.csv", "sets sep"),
                      ("configs:\n- data_files: 7", "names of files"),
                      ("x: &x [a, a]\nconfigs:\n- config_name: *x", "by no text"),
                      ("#" * 5_000_001, "larger than")):
        (tmp_path/"README.md").write_text(f"---\n{text}\n---\n")
        refused(tmp_path, why)


def test_a_saved_data_set_lists_nothing_outside(outside):
    table = table_of(GOOD)
    table.save_to_disk(outside/"other")
    arrow = "other/data-00000-of-00001.arrow"
    saved = outside/"in/saved"
    for name in (f"../{arrow}", str(outside/arrow)):
        table.save_to_disk(saved)
        state = json.loads((saved/"state.json").read_text())
        state["_data_files"] = [dict(filename=name)]
        (saved/"state.json").write_text(json.dumps(state))
        refused(saved, "only names inside")

    # splits of a dictionary
    datasets.DatasetDict(train=table).save_to_disk(outside/"in/two")
    assert len(load_problems(outside/"in/two")) == 1
    (outside/"in/two/dataset_dict.json").write_text(json.dumps(dict(splits=["../../other"])))
    refused(outside/"in/two", "only names inside")


def test_a_data_file_that_is_a_link_out_of_its_folder_is_named(outside):
    (outside/"in/train.jsonl").symlink_to(outside/"secret.jsonl")
    refused(outside/"in", "train.jsonl is a link that leads out")


def test_a_model_folder_runs_no_code_of_its_own(tmp_path, monkeypatch):
    import transformers.dynamic_module_utils as remote
    auto = {"AutoProcessor": "evil.Evil", "AutoTokenizer": ["evil.Evil", None]}
    (tmp_path/"evil.py").write_text(f"open({str(tmp_path/'ran')!r}, 'w')\nclass Evil: pass\n")
    for name in ("processor_config.json", "preprocessor_config.json", "tokenizer_config.json"):
        (tmp_path/name).write_text(json.dumps(dict(auto_map=auto, processor_class="Evil")))
    lines([GOOD], tmp_path/"a.jsonl")

    # whoever is asked whether to run it says yes
    asked = []
    monkeypatch.setattr("builtins.input", lambda *a: asked.append(a) or "y")
    monkeypatch.setattr(remote, "TIME_OUT_REMOTE_CODE", 5)
    with pytest.raises(FileNotFoundError, match="no processor at"):
        check_file(str(tmp_path/"a.jsonl"), model=str(tmp_path))
    assert not asked and not (tmp_path/"ran").exists()


# Real rows, where they are at hand

REAL = os.environ.get("CALIBRL_REALDATA")
real = pytest.mark.skipif(not REAL, reason="CALIBRL_REALDATA names no folder of real rows")


@real
def test_real_golds_are_letters_and_no_rationale():
    golds = dict(mmlu_stem=lambda row: chr(65 + row["answer"]), aqua=lambda row: row["correct"])
    for name, gold in golds.items():
        file = Path(REAL)/name/"test.jsonl"
        got = load_problems(file, on_bad="fail")
        for problem, row in zip(got, rows_of(file), strict=True):
            # choices that are letters: L, R, 1/C and C, of which the third is right
            assert problem.answer == (gold(row) if problem.answer != "1/C" else "1/C")


@real
def test_real_solutions_are_reduced_or_refused():
    for split in ("train", "test"):
        file = Path(REAL)/"gsm8k"/f"{split}.jsonl"
        got = load_problems(file, on_bad="fail")
        golds = [row["answer"].rpartition("#### ")[2] for row in rows_of(file)]
        assert [p.answer for p in got] == golds


@real
def test_real_pictures_are_seen():
    for name, n in (("logicvista/dataset.json", 40), ("dynamath/trial3/dataset.json", 12)):
        got = load_problems(Path(REAL)/name)
        assert len(got.sizes) == len(got) == n
    got = load_problems(Path(REAL)/"mathv/data/test.jsonl", root=Path(REAL)/"mathv")
    assert len(got.sizes) == len(got) == 89
    assert got.kinds == {"no question": 1}

    # pictures that are not at hand
    refused(Path(REAL)/"mmmu_pro/judged_gpt4o_standard10_cot.jsonl", "image tokens 160")


def test_pictures_are_told_apart_without_decoding_them(tmp_path, monkeypatch):
    "By the bytes as stored, wherever they are: in the table, in a file, in the text."
    from calibrl.eval import problem_hash
    both = [png(p.images[0]) for p in problems()[:2]]
    for n, data in enumerate(both):
        (tmp_path/f"{n}.png").write_bytes(data)

    def cells(n):
        text = f"data:image/png;base64,{base64.b64encode(both[n]).decode()}"
        return [f"{n}.png", [f"{n}.png"], {"path": f"{n}.png"}, text]

    def read(value):
        lines([{"question": "Q?", "answer": "1", "image": value}], tmp_path/"x.jsonl")
        return load_problems(tmp_path/"x.jsonl")[0]

    for first, second in zip(cells(0), cells(1), strict=True):
        found = [read(value) for value in (first, second, first)]
        with monkeypatch.context() as m:
            m.setattr(pictures, "decode", lambda *_: pytest.fail("a picture was decoded"))
            one, two, again = map(problem_hash, found)
        assert one == again != two

    # a file that changed under its name
    (tmp_path/"0.png").write_bytes(both[1])
    problem = read("0.png")
    before = problem_hash(problem)
    (tmp_path/"0.png").write_bytes(both[0])
    assert problem_hash(problem) != before
    assert len({problem_hash(p) for p in load_problems(FIXTURES/"geometry3k.parquet")}) == N
