"""Every option of every command, read off the signatures: a value that means nothing is refused in
one line, before anything is loaded or written."""
import inspect
import math
import re

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from calibrl.cli import COMMANDS, check_options, flag_of, main, parameters_of
from calibrl.config import Config


def options_of(kind):
    "The options of one kind, each with its command."
    return [(name, option) for name in COMMANDS
            for option, parameter in parameters_of(name).items() if parameter.anno is kind]


def line(name, option, value):
    "The words of a command line with one option; what else the command needs is given, too."
    words = name.split()
    for other, parameter in parameters_of(name).items():
        if other != option and parameter.default is inspect.Parameter.empty:
            words += ["--out", "x"] if other == "out" else ["x"]
    by_position = parameters_of(name)[option].default is inspect.Parameter.empty
    if by_position and option != "out":
        return [*words, value]
    return [*words, f"{flag_of(option)}={value}"]


def refusal(words, capsys, place):
    "What a command line that must be refused leaves: one line on stderr, and no file."
    assert main(words) == 2
    error = capsys.readouterr().err.strip()
    assert "Traceback" not in error and not any(place.iterdir())
    return error.splitlines()[-1]


@pytest.mark.parametrize("value", [str(10**20), str(2**63), "-1", "1e20", "nan"])
@pytest.mark.parametrize("name, option", options_of(int))
def test_a_whole_number_without_sense_is_refused_at_once(name, option, value, capsys, tmp_path,
                                                         monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert flag_of(option) in refusal(line(name, option, value), capsys, tmp_path)


@pytest.mark.parametrize("value", ["-1", "nan", "inf", "1e300"])
@pytest.mark.parametrize("name, option", options_of(float))
def test_a_number_without_sense_is_refused_at_once(name, option, value, capsys, tmp_path,
                                                   monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert flag_of(option) in refusal(line(name, option, value), capsys, tmp_path)


@pytest.mark.parametrize("name, option", options_of(str))
def test_an_empty_text_is_refused_at_once(name, option, capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    said = refusal(line(name, option, ""), capsys, tmp_path)
    assert "must be a text" in said and flag_of(option) in said


def test_what_the_commands_set_themselves_passes():
    for name in COMMANDS:
        defaults = {option: parameter.default for option, parameter in parameters_of(name).items()}
        check_options(name, {option: value for option, value in defaults.items()
                             if isinstance(value, (int, float, str))})


NUMBERS = st.one_of(st.integers(), st.floats(), st.booleans(), st.text(max_size=4), st.none(),
                    st.integers(2**31 - 2, 2**31 + 2), st.lists(st.integers(), max_size=1))


@settings(max_examples=1000, deadline=None)
@given(st.sampled_from(sorted(Config.__dataclass_fields__)), NUMBERS)
def test_a_config_is_sound_or_refused_by_name(name, value):
    try:
        cfg = Config(**{name: value})
    except ValueError as error:
        assert name in str(error)
        return
    kept = getattr(cfg, name)
    assert kept is None or isinstance(kept, str) or math.isfinite(kept)


def test_the_command_alone_is_a_usage_error(capsys):
    assert main([]) == 2
    shown = capsys.readouterr()
    assert "calibrl demo" in shown.err and not shown.out
    assert main(["--help"]) == 0
    assert "calibrl demo" in capsys.readouterr().out


def test_the_help_names_the_columns_of_a_data_file(capsys):
    from calibrl.data.columns import NAMES
    assert main(["data", "check", "--help"]) == 0
    said = capsys.readouterr().out
    known = [name for field in ("question", "answer", "images", "expert", "options", "id")
             for name in NAMES[field] if "." not in name]
    assert len(known) > 20 and all(re.search(rf"\b{name}\b", said) for name in known)
    assert max(map(len, said.splitlines())) < 80

    # the first help names the usual ones
    assert main(["--help"]) == 0
    data = " ".join(capsys.readouterr().out.split()).partition("Your data: ")[2]
    for field, name in (("question", "question"), ("answer", "answer"), ("images", "image"),
                        ("expert", "expert"), ("options", "options"), ("id", "id")):
        assert name in NAMES[field] and re.search(rf"\b{name}\b", data), name
