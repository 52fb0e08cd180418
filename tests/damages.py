"""What can become of the files in a folder: each damage leaves something else, or nothing, where a
command left a file or a folder. `chance` is what `hypothesis.strategies.randoms` draws."""
import copy
import json
import math
import re
import shutil

MANY_DIGITS = "9"*5000
OTHER = (b"", b"{}", b"[]", b"[1]", b"null", b"5", b'"x"', b"true", b"NaN", b"-Infinity", b"1e999",
         MANY_DIGITS.encode(), b"["*50_000, b'{"a": '*50_000, b"\xff\xfe", "{}".encode("utf-16"),
         b"\x00"*64, b"{}\n{}\n", b"[1]\n[2]\n", b'{"step": 1}\n', b"= 1\n", b"run = 5\n",
         b"\n\n\n", b'{"a": "\\ud800"}\n', b'{"": {"": []}}', b"PK\x03\x04", b'{"error": "x"}\n')
WRONG = (None, True, False, -1, 0, 7, 2**63, 10**400, 1e308, math.nan, math.inf, -0.5, "", "x",
         "../../etc/passwd", "/etc/passwd", "\ud800", [], {}, [None], [[]], {"a": None}, ["a", 1],
         [0, 0], {"r": 10**9}, "9"*5000, "<script>alert(1)</script>")
FOREIGN = ("x.json", ".x.json", "step-x", "step-²", "step-٣", "step-007", "step-999999999",
           "step-1", "x.jsonl", "notes.txt", "adapter_config.json", "a\nb.json", "x-0.json",
           "images", "summary.json", "table.md", ".step-3.new", "broken", "grpo-0.at")
TOML_VALUES = ("5", "-1", '"x"', '""', "true", "[1]", "{a = 1}", "nan", "inf", "1e308",
               "9"*30, "1979-05-27", "[[]]", '"../../etc/passwd"')


# ---- a value in a file
def places(value, above=()):
    "The place of each value in something read from JSON."
    inner = []
    if isinstance(value, dict):
        inner = list(value.items())
    elif isinstance(value, list):
        inner = list(enumerate(value))[:4]
    found = [above] if above else []
    for name, part in inner:
        found += places(part, (*above, name))
    return found


def changed(value, place, new):
    "The same with something else at a place; `...` takes it out."
    value = copy.deepcopy(value)
    inner = value
    for name in place[:-1]:
        inner = inner[name]
    if new is ...:
        del inner[place[-1]]
    else:
        inner[place[-1]] = new
    return value


def other_value(text, chance):
    "JSON text with a value of another kind, or without one of its values."
    value = json.loads(text)
    if not places(value):
        return "[]"
    return json.dumps(changed(value, chance.choice(places(value)), chance.choice((*WRONG, ...))))


def wrong_value(path, chance):
    "One value of a file of JSON, JSON Lines or TOML is another, or missing."
    lines = path.read_text(encoding="utf-8").splitlines()
    number = chance.randrange(len(lines))
    if path.suffix == ".json":
        lines = [other_value("\n".join(lines), chance)]
    elif path.suffix == ".jsonl":
        lines[number] = other_value(lines[number], chance)
    elif chance.random() < .2:
        del lines[number]
    else:
        lines[number] = re.sub("= .*", f"= {chance.choice(TOML_VALUES)}", lines[number])
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")


def other_lines(path, chance):
    "Lines are doubled, swapped or missing."
    lines = path.read_bytes().splitlines(keepends=True)
    place = chance.randrange(len(lines))
    kind = chance.randrange(3)
    if kind == 0:
        lines.insert(place, lines[0])
    elif kind == 1:
        lines.reverse()
    else:
        del lines[place]
    path.write_bytes(b"".join(lines))


# ---- the bytes of a file
def other_bytes(path, chance):
    "The file holds something else."
    path.write_bytes(chance.choice(OTHER))


def cut(path, chance):
    "The file ends somewhere."
    data = path.read_bytes()
    path.write_bytes(data[:chance.randrange(len(data) + 1)])


def one_bit(path, chance):
    "One bit is another."
    data = bytearray(path.read_bytes())
    data[chance.randrange(len(data))] ^= 1 << chance.randrange(8)
    path.write_bytes(data)


def tail(path, chance):
    "Something follows."
    with open(path, "ab") as file:
        file.write(chance.choice(OTHER))


# ---- what is at the place
def remove(path):
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink()


def gone(path, chance):
    "Nothing is there."
    remove(path)


def other_kind(path, chance):
    "A folder is where a file was, or a file where a folder was."
    was_folder = path.is_dir()
    remove(path)
    if was_folder:
        path.write_bytes(chance.choice(OTHER))
    else:
        path.mkdir()
        if chance.random() < .5:
            (path/"x.json").write_text("{}")


def link(path, chance):
    "A link that leads nowhere, to itself, to another file, or to a copy of what was there."
    target = [path.name, "nowhere/at/all", "/etc/passwd", "moved"][chance.randrange(4)]
    if target == "moved":
        target = path.with_name(f".moved-{path.name}")
        path.rename(target)
    else:
        remove(path)
    path.symlink_to(target)


def emptied(path, chance):
    "A folder holds nothing."
    for inner in path.iterdir():
        remove(inner)


def foreign(path, chance):
    "Something else is in a folder: a file, or a folder."
    new = path/chance.choice(FOREIGN)
    if new.exists():
        return
    if chance.random() < .3:
        new.mkdir()
    else:
        new.write_bytes(chance.choice(OTHER))


OF_ANYTHING = (gone, other_kind, link)
OF_A_FOLDER = (*OF_ANYTHING, foreign, foreign, foreign, emptied)
OF_A_FILE = (*OF_ANYTHING, other_bytes, other_bytes, cut, one_bit, tail)
OF_TEXT = (*OF_A_FILE, wrong_value, wrong_value, wrong_value, wrong_value, wrong_value, other_lines)


def damages_of(path):
    "What can be done to a file or a folder."
    if path.is_dir():
        return OF_A_FOLDER
    return OF_TEXT if path.suffix in (".json", ".jsonl", ".toml") else OF_A_FILE
