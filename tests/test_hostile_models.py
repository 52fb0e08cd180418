"""A model's folder is somebody else's: whatever its small files say, a line tells what is wrong."""
import copy
import json
import os

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import tiny_models
from calibrl.rollout import Policy
from calibrl.tasks import Problem

FILES = ("config.json", "processor_config.json", "tokenizer_config.json", "generation_config.json")
WRONG = (None, "x", [], {}, -1, 0, True, [1, "a"], 1e308, 2**70)


def places(data, above=()):
    "The place of each value in a JSON object, as the names that lead there."
    found = []
    for name, value in data.items():
        found.append((*above, name))
        if isinstance(value, dict):
            found += places(value, (*above, name))
    return found


def changed(data, place, value):
    "The same JSON object with another value at a place."
    data = copy.deepcopy(data)
    inner = data
    for name in place[:-1]:
        inner = inner[name]
    inner[place[-1]] = value
    return data


@pytest.fixture(scope="module", params=["qwen2_5_vl", "qwen3"])
def model(request, tmp_path_factory):
    "A small model's folder, and each place of its small files."
    folder = tiny_models.make(request.param, tmp_path_factory.mktemp(request.param)/"model")
    contents = {name: json.loads((folder/name).read_text()) for name in FILES
                if (folder/name).exists()}
    everywhere = [(name, place) for name, data in contents.items() for place in places(data)]
    return folder, contents, everywhere


def copy_with(folder, into, name, data):
    "A model's folder with one file of its own; the others are linked."
    into.mkdir()
    for file in folder.iterdir():
        if file.name != name:
            os.symlink(file, into/file.name)
    (into/name).write_text(json.dumps(data))
    return into


@settings(max_examples=80, deadline=None, derandomize=True,
          suppress_health_check=list(HealthCheck))
@given(st.data())
def test_a_wrong_value_makes_a_model_or_one_line(model, tmp_path_factory, data):
    folder, contents, everywhere = model
    name, place = data.draw(st.sampled_from(everywhere))
    value = data.draw(st.sampled_from(WRONG))
    into = tmp_path_factory.mktemp("hostile")/"model"
    hostile = copy_with(folder, into, name, changed(contents[name], place, value))
    try:
        policy = Policy.from_pretrained(hostile)
        policy.sample([Problem("2 + 2?", "4")], 1, temperature=0., max_new_tokens=2)
    except (ValueError, OSError, RuntimeError) as error:
        assert str(error).strip() and "Traceback" not in str(error)


@pytest.mark.parametrize("template", [
    "{{ ''.__class__.__mro__[1].__subclasses__() }}", "{% for m in messages %}", "{{ 1/0 }}",
    "{{ messages.append(1) }}", "{% for i in range(10**9) %}x{% endfor %}",
    "{{ raise_exception('no') }}", "{{ cycler.__init__.__globals__.os.popen('id').read() }}"])
def test_a_template_that_the_sandbox_stops_is_one_line(template, model, tmp_path):
    folder, *_ = model
    hostile = copy_with(folder, tmp_path/"model", "chat_template.jinja", {})
    (hostile/"chat_template.jinja").write_text(template)
    with pytest.raises(ValueError, match="chat template refuses the prompt"):
        Policy.from_pretrained(hostile).sample([Problem("2 + 2?", "4")], 1, max_new_tokens=2)


def test_a_configuration_that_outgrows_its_weights_is_refused_before_memory_is_taken(tmp_path):
    folder = tiny_models.make("qwen3", tmp_path/"small")
    config = json.loads((folder/"config.json").read_text()) | {"vocab_size": 10**10}
    hostile = copy_with(folder, tmp_path/"model", "config.json", config)
    with pytest.raises(ValueError, match="parameters are asked for"):
        Policy.from_pretrained(hostile)
