"""Files that came to harm: each is a line that names it and says what to do, and nothing of a run
is lost."""
import json

import pytest

from calibrl.cli import main


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


def test_a_data_file_with_one_readable_row_is_read(tmp_path, capsys):
    data = tmp_path/"some.jsonl"
    row = {"question": "How much is 1+1?", "answer": "2"}
    data.write_bytes(ROW.encode("latin-1")*3 + json.dumps(row).encode())
    assert main(["data", "check", str(data)]) == 0
    assert "4 rows" in capsys.readouterr().out
