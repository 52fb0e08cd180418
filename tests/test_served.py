"""Responses from a vLLM server: recorded answers of a real one, and whatever a wrong one sends.

`tests/replay.py` is the server; `make test-vllm` makes the recording."""
import json
import os
import signal
import socket
import threading
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from replay import Replay, Running
from test_vllm import TRAIN, apart, moved_adapter

from calibrl import algebra, geometry, http_json, served
from calibrl.cli import main
from calibrl.config import Config
from calibrl.files import read_jsonl
from calibrl.policy import Policy
from calibrl.rollout import rollout, with_experts
from calibrl.train import train

SECRET = "a-key-that-nobody-may-see"
WORLDS = {"tiny": geometry, "algebra": algebra}


@pytest.fixture(scope="module", params=WORLDS)
def world(request):
    "A world with its tiny policy."
    world = WORLDS[request.param]
    return world, Policy.from_pretrained(world.tiny_checkpoint(), lora_rank=4)


@pytest.fixture(scope="module")
def policy():
    return Policy.from_pretrained(geometry.tiny_checkpoint(), lora_rank=4)


@pytest.fixture(autouse=True)
def hasty(monkeypatch):
    "No pauses, and no key from outside."
    monkeypatch.setattr(http_json, "PAUSE", .01)
    monkeypatch.delenv(http_json.KEY, raising=False)


def fresh(policy):
    "The same policy with its adapter as it began."
    with torch.no_grad():
        for name, weight in policy.model.named_parameters():
            if "lora_B" in name:
                weight.zero_()
    return policy


def asking(url, **options):
    "A configuration that samples from a server."
    return Config(sampler="vllm", sampler_url=url, **options)


def draw(policy, problems, seed=0):
    "What `tests/test_vllm.py` has recorded of a policy."
    return policy.sampler.sample(problems, 3, 1., 32, seed, [p.expert for p in problems])


def test_recorded_answers_are_as_our_scorer_scores_them(world):
    world, policy = world
    fresh(policy)
    problems = world.problems(2)
    replay = Replay()
    with Running(replay) as url, served.serving(policy, asking(url)):
        first = draw(policy, problems)
        again = draw(policy, problems)
        moved_adapter(policy)
        moved = draw(policy, problems, seed=1)
    assert apart(first) < 1e-3 and apart(moved) < 1e-3
    assert torch.equal(first.logp, again.logp) and first.ids == again.ids
    assert first.ids != moved.ids

    # one adapter for the same weights, a fresh name for others, and none is left
    assert len(set(replay.names)) == 2 and not replay.loaded
    paths = [content["lora_path"] for _, path, content in replay.requests if "load_lora" in path
             and "lora_path" in content]
    assert not any(Path(path).parent.exists() for path in paths)
    assert policy.sampler is None

    # experts are scored by us, as the policy's own sampling scores them
    own = policy.sample(problems, 1, max_new_tokens=1, experts=[p.expert for p in problems])
    assert torch.equal(own.expert_mask, moved.expert_mask)
    assert torch.allclose(own.expert_logp, moved.expert_logp, atol=1e-4)
    assert own.prompt_tokens == moved.prompt_tokens


def test_what_is_asked(policy):
    fresh(policy)
    problems = geometry.problems(2)
    replay = Replay()
    with Running(replay) as url, served.serving(policy, asking(url)):
        draw(policy, problems)
    asked = [content for _, path, content in replay.requests if "completions" in path]
    assert len(asked) == 2
    for content, problem in zip(asked, problems, strict=True):
        parts = content["messages"][-1]["content"]
        assert [part["type"] for part in parts].count("image_url") == len(problem.images) == 1
        assert not set(content["allowed_token_ids"]) & set(policy.banned)
        assert set(policy.eos_ids) <= set(content["allowed_token_ids"])
        assert content["model"] == replay.names[0]
    assert asked[0]["seed"] != asked[1]["seed"]


def test_a_picture_arrives_as_it_was_sent():
    import base64
    import io

    from PIL import Image
    picture = Image.new("RGBA", (5, 4), (10, 200, 30, 128))
    url = served.picture_url(picture)
    back = Image.open(io.BytesIO(base64.b64decode(url.partition(",")[2])))
    assert back.tobytes() == picture.convert("RGB").tobytes()


def test_limits_of_pictures_go_to_the_server(policy):
    problem = geometry.problems(1)[0]
    wish = served.wish_of(policy, 2, max_new_tokens=8)
    limits = policy.pixels
    assert "mm_processor_kwargs" not in served.request_for(policy, problem, 0, "a", wish).content
    policy.pixels = (784, 3136)
    try:
        content = served.request_for(policy, problem, 0, "a", wish).content
        nothing = served.request_for(policy, replace(problem, images=()), 0, "a", wish).content
    finally:
        policy.pixels = limits
    assert content["mm_processor_kwargs"] == {"size": {"shortest_edge": 784, "longest_edge": 3136}}
    assert "mm_processor_kwargs" not in nothing


def changed(change):
    "A change of the first choice of an answer."
    def spoil(content):
        change(content["choices"][0])
        return content
    return spoil


def last_cut(choice):
    "Take the last token away, and its log-probability."
    choice["token_ids"].pop()
    choice["logprobs"]["content"].pop()


def all_likely(choice):
    "Give each token a log-probability near 0."
    for step in choice["logprobs"]["content"]:
        step["logprob"] = -1e-6


def token_set(i):
    "Put a token in the first place, with its log-probability."
    def change(choice):
        choice["token_ids"][0] = i
        choice["logprobs"]["content"][0]["token"] = f"token_id:{i}"
    return change


def logp_set(value):
    "Put a log-probability in the first place."
    def change(choice):
        choice["logprobs"]["content"][0]["logprob"] = value
    return change


def empty(choice):
    "A response without tokens."
    choice["token_ids"], choice["logprobs"] = [], {"content": []}


WRONG = [  # what becomes of an answer, what is said of it
    (lambda c: {"choices": c["choices"]}, "has no prompt_token_ids"),
    (lambda c: c | {"prompt_token_ids": c["prompt_token_ids"][:-1]}, "that are not our"),
    (lambda c: c | {"prompt_token_ids": [1.5]}, "are no whole numbers"),
    (lambda c: c | {"choices": c["choices"][:-1]}, "2 responses where 3 were asked"),
    (lambda c: c | {"choices": c["choices"][:1]*3}, "3 responses where 3 were asked"),
    (lambda c: c | {"choices": ["text"]}, "has no index"),
    (lambda c: [c], "has no prompt_token_ids"),
    (lambda c: b"[" * 100_000, "has no prompt_token_ids"),
    (lambda c: b"<html>such\x1b[31m</html>", "has no prompt_token_ids"),
    (changed(lambda choice: choice.pop("token_ids")), "has no token_ids"),
    (changed(lambda choice: choice.update(token_ids=[True])), "are no whole numbers"),
    (changed(lambda choice: choice["token_ids"].insert(0, 20)), "tokens and"),
    (changed(lambda choice: choice.update(logprobs=None)), "has no logprobs"),
    (changed(lambda choice: choice["logprobs"]["content"][0].update(token="token_id:7")),
     "stands where token"),
    (changed(lambda choice: choice["logprobs"]["content"][0].update(token="the")),
     "'the' stands where token"),
    (changed(token_set(10**6)), "holds token 1000000, which no policy may write"),
    (changed(token_set(-1)), "holds token -1, which no policy may write"),
    (changed(token_set(0)), "holds token 0, which no policy may write"),
    (changed(token_set(2)), "goes on behind its end"),
    (changed(last_cut), "goes on behind its end, or has none"),
    (changed(empty), "0 tokens where 1 to 32 were asked for"),
    (changed(logp_set(float("nan"))), "nan is no log-probability"),
    (changed(logp_set(-float("inf"))), "-inf is no log-probability"),
    (changed(logp_set(.5)), "0.5 is no log-probability"),
    (changed(logp_set(None)), "has no logprob"),
    (changed(logp_set(True)), "True is no log-probability"),
    (changed(logp_set(-9999.)), "far more than rounding"),
    (lambda c: c | {"choices": [choice | {"logprobs": {"content": [
        step | {"logprob": step["logprob"] - 2} for step in choice["logprobs"]["content"]]}}
        for choice in c["choices"]]}, "far more than rounding"),
]


@pytest.mark.parametrize("number", range(len(WRONG)))
def test_a_wrong_answer_is_one_clear_line_and_never_a_row(number, policy):
    spoil, said = WRONG[number]
    fresh(policy)
    replay = Replay()
    replay.spoil = spoil
    with Running(replay) as url, served.serving(policy, asking(url)):
        with pytest.raises(RuntimeError) as error:
            draw(policy, geometry.problems(2))
    assert said in str(error.value) and url in str(error.value)
    assert str(error.value).isprintable() and len(str(error.value)) < 500
    assert not replay.loaded


def completions(deal):
    "Have requests for responses dealt with in another way."
    return lambda handler: "completions" in handler.path and (deal(handler) or True)


def test_a_redirect_is_not_followed_and_the_key_stays_here(policy, monkeypatch):
    monkeypatch.setenv(http_json.KEY, SECRET)
    other, replay = Replay(), Replay(key=SECRET)
    fresh(policy)
    with Running(other) as elsewhere, Running(replay) as url:
        replay.first = completions(lambda handler: handler.say(
            307, {}, Location=f"{elsewhere}/v1/chat/completions"))
        with served.serving(policy, asking(url)):
            with pytest.raises(RuntimeError, match="redirect.* not followed") as error:
                draw(policy, geometry.problems(2))
    assert other.requests == [] and SECRET not in str(error.value)


def test_no_proxy_is_asked(policy, monkeypatch):
    with Running(Replay()) as elsewhere, Running(Replay()) as url:
        for name in ("http_proxy", "HTTP_PROXY", "ALL_PROXY"):
            monkeypatch.setenv(name, elsewhere)
        server = http_json.Server(url, 5)
        assert http_json.answer_to(server, http_json.Request("GET", "/v1/models")).status == 200


def test_a_key_is_asked_for_and_never_shown(policy, monkeypatch):
    replay = Replay(key=SECRET)
    with Running(replay) as url:
        with pytest.raises(RuntimeError, match=f"wants a key.*{http_json.KEY}"):
            served.connect(policy, url, 5)
        monkeypatch.setenv(http_json.KEY, SECRET)
        replay.reply = lambda *given: (500, {"error": {"message": f"{given} with {SECRET}"}})
        with pytest.raises(RuntimeError, match="status 500") as error:
            served.connect(policy, url, 5)
    assert SECRET not in str(error.value)
    assert SECRET not in repr(http_json.Server(url, 5))


def test_a_server_that_hangs_is_left_in_time(policy):
    replay = Replay()
    replay.first = completions(lambda handler: replay.release.wait(30))
    fresh(policy)
    with Running(replay) as url, served.serving(policy, asking(url, sampler_timeout=1)):
        with pytest.raises(RuntimeError, match="did not answer in 1 seconds"):
            draw(policy, geometry.problems(2))
    assert len([path for _, path, _ in replay.requests if "completions" in path]) == 2


def test_a_server_that_drips_is_left_in_time(policy):
    replay = Replay()

    def drip(handler):
        handler.send_response(200)
        handler.send_header("Content-Length", "1000")
        handler.end_headers()
        while not replay.release.wait(.2):
            handler.wfile.write(b" ")
    replay.first = completions(drip)
    fresh(policy)
    with Running(replay) as url, served.serving(policy, asking(url, sampler_timeout=1)):
        with pytest.raises(RuntimeError, match="did not answer in 1 seconds"):
            draw(policy, geometry.problems(2))


def test_an_answer_without_end_is_cut(policy, monkeypatch):
    monkeypatch.setattr(http_json, "MOST_BYTES", 2**20)
    replay = Replay()
    replay.spoil = lambda content: b" "*2**21
    fresh(policy)
    with Running(replay) as url, served.serving(policy, asking(url)):
        with pytest.raises(RuntimeError, match="more than 1 MiB as one answer"):
            draw(policy, geometry.problems(2))


@pytest.mark.parametrize("fault", ["busy", "closed"])
def test_a_server_that_is_back_in_a_moment_is_asked_again(policy, fault):
    replay = Replay()
    failed = []

    def first(handler):
        if "completions" not in handler.path or len(failed) == 2:
            return False
        failed.append(handler.path)
        if fault == "busy":
            handler.say(503, {})
        else:
            handler.close_connection = True
            handler.connection.shutdown(socket.SHUT_RDWR)
        return True
    replay.first = first
    fresh(policy)
    with Running(replay) as url, served.serving(policy, asking(url)):
        assert apart(draw(policy, geometry.problems(2))) < 1e-3
    assert len(failed) == 2


def test_a_server_that_stays_away_is_given_up(policy):
    replay = Replay()
    replay.first = completions(lambda handler: handler.say(503, {}))
    fresh(policy)
    with Running(replay) as url, served.serving(policy, asking(url)):
        with pytest.raises(RuntimeError, match="status 503.*tried 3 times"):
            draw(policy, geometry.problems(1))
    assert len([path for _, path, _ in replay.requests if "completions" in path]) == 3


def test_without_a_server_it_is_said_how_to_start_one(capsys, tmp_path):
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        url = f"http://127.0.0.1:{taken.getsockname()[1]}"
        code = main(["train", *TRAIN, "--sampler-url", url, "--out", str(tmp_path/"run")])
    error = capsys.readouterr().err.splitlines()[-1]
    assert code == 2 and error.startswith(f"calibrl train: no server answers at {url}")
    assert "--enable-lora --max-lora-rank 8 --logprobs-mode processed_logprobs" in error
    assert "pip install vllm, in an environment of its own" in error


@pytest.mark.parametrize("url", ["http://me:pw@host:1", "file:///etc/passwd", "host:8000", "", " "])
def test_an_address_that_is_none_is_refused_before_a_weight_is_loaded(url, capsys, tmp_path):
    out = str(tmp_path/"run")
    assert main(["train", "--sampler", "vllm", "--sampler-url", url, "--out", out]) == 2
    assert "pw" not in capsys.readouterr().err
    assert not Path(out).exists()


def test_a_server_without_adapters_is_told_apart(policy):
    replay = Replay()
    replay.load = lambda name, folder: (404, {"detail": "Not Found"})
    fresh(policy)
    with Running(replay) as url, served.serving(policy, asking(url)):
        with pytest.raises(RuntimeError, match="Not Found.*--enable-lora, --max-lora-rank"):
            draw(policy, geometry.problems(1))


def test_an_adapter_in_the_vision_tower_is_refused(policy):
    tower = Policy.from_pretrained(geometry.tiny_checkpoint(), lora_rank=2, train_vision=True)
    with pytest.raises(ValueError, match="leaves out what an adapter has in the vision tower"):
        served.connect(tower, "http://127.0.0.1:1", 5)


def test_a_server_with_a_sleep_mode_sleeps_while_we_learn(policy):
    replay = Replay(sleeps=True)
    replay.asleep = True                 # as a run that was killed may have left it
    fresh(policy)
    with Running(replay) as url, served.serving(policy, asking(url)):
        first = draw(policy, geometry.problems(2))
        assert replay.asleep
        assert draw(policy, geometry.problems(2)).ids == first.ids
        assert replay.asleep
    assert not replay.asleep and not replay.loaded


def test_ctrl_c_ends_a_wait_at_once(policy):
    "The server holds its answer back until the process has been interrupted."
    replay = Replay()

    def interrupt(handler):
        if not replay.release.is_set():
            os.kill(os.getpid(), signal.SIGINT)
            replay.release.wait(30)
    replay.first = completions(interrupt)
    fresh(policy)
    if threading.current_thread() is not threading.main_thread():
        pytest.skip("signals come to the main thread")

    # a process that was started in the background may have been told to ignore Ctrl-C
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        with Running(replay) as url:
            with pytest.raises(KeyboardInterrupt), served.serving(policy, asking(url)):
                draw(policy, geometry.problems(1))
            assert not replay.release.is_set()
    finally:
        signal.signal(signal.SIGINT, before)
    assert policy.sampler is None and not replay.loaded


def without_clock(rows):
    "Metrics without what differs from run to run."
    return [{name: value for name, value in row.items() if name != "seconds"} for row in rows]


def test_three_recorded_steps_and_a_run_that_goes_on_after_a_hang(tmp_path, capsys):
    replay = Replay()
    with Running(replay) as url:
        command = ["train", *TRAIN, "--sampler-url", url]
        assert main([*command, "--out", str(tmp_path/"whole")]) == 0
        whole = read_jsonl(tmp_path/"whole"/"metrics.jsonl")
        assert [row["step"] for row in whole] == [1, 2, 3]
        assert all(row["sampler_gap"] < 1e-2 and row["sampler_capped"] == 0 for row in whole)
        assert whole[0]["sampler_gap"] < 1e-4 and whole[0]["first_ratio_error"] < 1e-4
        assert len(set(replay.names)) == 3

        # the third step finds the server hanging; the same command goes on from the second
        seen = len(replay.names)

        def hang(handler):
            if "completions" in handler.path and len(replay.names) == seen + 3:
                return replay.release.wait(30) or True
            return False
        replay.first = hang
        command += ["--sampler-timeout", "2", "--out", str(tmp_path/"parts")]
        assert main(command) == 2
        assert "did not answer in 2 seconds" in capsys.readouterr().err
        assert len(read_jsonl(tmp_path/"parts"/"metrics.jsonl")) == 2
        replay.first = lambda handler: False
        assert main(command) == 0
    parts = read_jsonl(tmp_path/"parts"/"metrics.jsonl")
    assert without_clock(parts) == without_clock(whole)
    assert len(set(replay.names)) == len(replay.names) == seen + 4

    # another way of sampling is another run
    assert main(["train", *TRAIN[:-1], "policy", "--out", str(tmp_path/"parts")]) == 2
    assert "sampler was 'vllm'" in capsys.readouterr().err


def test_the_weights_of_the_difference_reach_every_gradient(policy):
    "Half of the server's log-probabilities are moved: those tokens count by the capped weight."
    fresh(policy)
    problems = geometry.problems(2)
    ro = rollout(policy, problems, n=3, max_new_tokens=16, seed=1)
    assert torch.equal(ro.sampler_logp, ro.old_logp)
    moved = torch.where(torch.arange(ro.mask.shape[1]) % 2 == 0, 2., -.25)*ro.mask
    ro = replace(ro, sampler_logp=ro.old_logp - moved)
    logp = ro.old_logp.clone().requires_grad_()
    same = served.weighted(logp, ro, asking("http://a", sampler_cap=3.))
    assert torch.equal(same, logp)
    (same*ro.mask).sum().backward()
    by_hand = torch.where(torch.arange(ro.mask.shape[1]) % 2 == 0, 3.,
                          torch.tensor(-.25).exp())*ro.mask
    assert torch.allclose(logp.grad, by_hand)
    metrics = served.sampler_metrics(ro, asking("http://a", sampler_cap=3.))
    even = (ro.mask & (moved == 2)).sum()/ro.mask.sum()
    assert metrics["sampler_capped"] == pytest.approx(float(even))
    assert metrics["sampler_gap"] == pytest.approx(float(moved.abs().sum()/ro.mask.sum()))

    # an expert's row was drawn by nobody
    both = with_experts(policy, ro)
    assert torch.equal(both.sampler_logp[3::4], both.old_logp[3::4])


def test_several_processes_do_not_ask_one_server(policy, monkeypatch):
    from calibrl import ready as room
    monkeypatch.setattr(room, "processes", lambda: (0, 2))
    steps = train(policy, geometry.problems(4), Config(sampler="vllm", prompts=4))
    with pytest.raises(ValueError, match="sampler vllm is asked by one process, and here are 2"):
        next(steps)


def test_the_recording_says_where_it_is_from():
    from replay import RECORDING
    assert "vLLM" in json.loads(RECORDING.read_text())["about"]
