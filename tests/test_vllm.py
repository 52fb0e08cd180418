"""A real vLLM server samples for us: `make test-vllm` makes its environment and runs this.

CALIBRL_VLLM names the Python of that environment; without it all here is skipped. Three steps are
trained through the server, a text model is sampled from, an exported folder is served, and what
the server answered is kept as the recording that `tests/test_served.py` replays."""
import contextlib
import json
import os
import socket
import subprocess
import time
import urllib.request
from pathlib import Path

import pytest
import torch
from replay import RECORDING, key_of, trimmed

from calibrl import algebra, geometry, served
from calibrl.cli import main
from calibrl.config import Config
from calibrl.files import read_jsonl, write_atomic
from calibrl.policy import Policy

PYTHON = os.environ.get("CALIBRL_VLLM")
pytestmark = pytest.mark.skipif(not PYTHON, reason="CALIBRL_VLLM names no Python with vLLM")

# What a small machine without a GPU needs; adapters are loaded while the server runs
SETTINGS = {
    "VLLM_CPU_KVCACHE_SPACE": "1", "VLLM_CPU_OMP_THREADS_BIND": "nobind",
    "VLLM_ENABLE_V1_MULTIPROCESSING": "0", "VLLM_ALLOW_RUNTIME_LORA_UPDATING": "1",
    "VLLM_NO_USAGE_STATS": "1", "DO_NOT_TRACK": "1", "HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1"}
OPTIONS = ["--dtype", "float32", "--enforce-eager", "--max-model-len", "512",
           "--max-num-seqs", "16", "--logprobs-mode", "processed_logprobs"]
ADAPTERS = ["--enable-lora", "--max-lora-rank", "8", "--max-loras", "1"]

# The runs of tests/test_served.py, so that their requests are in the recording
TRAIN = ["--model", "tiny", "--steps", "3", "--prompts", "2", "--responses", "4",
         "--mini-batches", "1", "--max-new-tokens", "40", "--lora-rank", "4", "--lr", "0.002",
         "--save-every", "1", "--sampler", "vllm"]
RECORDED = {}


def free_port():
    "A port that nobody listens at."
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        return found.getsockname()[1]


@contextlib.contextmanager
def serving(model, log, *more):
    "Start vLLM with a model; its address, within."
    port = free_port()
    command = [PYTHON, "-m", "vllm.entrypoints.openai.api_server", "--model", str(model),
               "--host", "127.0.0.1", "--port", str(port), *OPTIONS, *more]
    outside = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    with open(log, "wb") as out:
        server = subprocess.Popen(command, stdout=out, stderr=out, env=outside | SETTINGS)
    url = f"http://127.0.0.1:{port}"
    try:
        wait_for(url, server, log)
        yield url
    finally:
        server.terminate()
        server.wait(60)


def wait_for(url, server, log):
    "Return once a server answers; fail with the end of its log where it does not."
    for _ in range(900):
        with contextlib.suppress(OSError):
            urllib.request.urlopen(f"{url}/health", timeout=5)
            return
        if server.poll() is not None:
            break
        time.sleep(1)
    pytest.fail(f"vLLM did not start:\n{Path(log).read_text(errors='replace')[-3000:]}")


@pytest.fixture(autouse=True)
def recorded(monkeypatch):
    "Keep each answer with responses."
    asked = served.answers_to

    def remember(server, requests, **given):
        answers = asked(server, requests, **given)
        for request, answer in zip(requests, answers, strict=True):
            if answer.status == 200:
                RECORDED[key_of(request.content)] = trimmed(answer.content)
        return answers
    monkeypatch.setattr(served, "answers_to", remember)


def moved_adapter(policy):
    "Give a policy an adapter that changes something."
    torch.manual_seed(1)
    with torch.no_grad():
        for name, weight in policy.model.named_parameters():
            if "lora_B" in name:
                weight.normal_(std=.02)


def draws(policy, url, problems, seeds=(0, 1)):
    "Samples from a server, and again after the adapter has changed."
    found = []
    with served.serving(policy, Config(sampler="vllm", sampler_url=url)):
        for seed in seeds:
            given = (problems, 3, 1., 32, seed, [p.expert for p in problems])
            found.append(policy.sampler.sample(*given))
            moved_adapter(policy)
    return found


def apart(samples):
    "How far the server is from our scorer, in nats, at most."
    return float((samples.logp - samples.sampler_logp)[samples.mask].abs().max())


def test_three_steps_with_pictures_and_the_exported_folder(tmp_path):
    tiny = geometry.tiny_checkpoint()
    out = tmp_path/"run"
    with serving(tiny, tmp_path/"tiny.log", *ADAPTERS) as url:
        assert main(["train", *TRAIN, "--sampler-url", url, "--out", str(out)]) == 0
        for samples in draws(Policy.from_pretrained(tiny, lora_rank=4), url, geometry.problems(2)):
            assert apart(samples) < 1e-3
    rows = read_jsonl(out/"metrics.jsonl")
    print("sampler_gap:", [row["sampler_gap"] for row in rows])
    assert len(rows) == 3
    assert all(row["sampler_gap"] < 1e-4 and row["sampler_capped"] == 0 for row in rows)
    assert rows[-1]["grad_norm"] > 0

    # merged, it is a model like any other
    merged = tmp_path/"merged"
    assert main(["export", str(out), "--dtype", "fp32", "--out", str(merged)]) == 0
    with serving(merged, tmp_path/"merged.log") as url:
        policy = Policy.from_pretrained(merged, lora_rank=0)
        samples, = draws(policy, url, geometry.problems(2), seeds=(7,))
        print("exported, apart at most:", apart(samples))
        assert apart(samples) < 1e-3


def test_a_text_model_and_the_recording(tmp_path):
    model = algebra.tiny_checkpoint()
    with serving(model, tmp_path/"algebra.log", *ADAPTERS) as url:
        for samples in draws(Policy.from_pretrained(model, lora_rank=4), url, algebra.problems(2)):
            print("text, apart at most:", apart(samples))
            assert apart(samples) < 1e-3
    version = subprocess.run([PYTHON, "-c", "import vllm; print(vllm.__version__)"], check=True,
                             capture_output=True, text=True).stdout.split()[-1]
    kept = {"about": f"answers of vLLM {version} on a CPU", "answers": RECORDED}
    write_atomic(RECORDING, json.dumps(kept, sort_keys=True) + "\n")
