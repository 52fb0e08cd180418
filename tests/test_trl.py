"""CalibRL on TRL against `calibrl_loss` on our own engine: one batch, one expert, the same loss and
the same gradients. `make test-trl` runs this file; it is skipped where TRL is not installed."""
import hashlib
import inspect
import json
import os
import pickle
import re
import shlex
import shutil
import signal
import subprocess
import sys
import time
from importlib.util import find_spec
from pathlib import Path

import psutil
import pytest
import torch
import torch.nn.functional as F
from safetensors.torch import load_file

from calibrl import trl as ours
from calibrl.cli import main, of_kind, read_options
from calibrl.config import Config
from calibrl.files import read_jsonl
from calibrl.loss import GAPS, calibrl_loss, group_advantages
from calibrl.loss.live import live_loss
from calibrl.runs import engine_trl
from calibrl.runs.folder import RunSpec
from calibrl.runs.options import by_engine

pytest.importorskip("trl", reason="TRL is not installed: make test-trl")
from datasets import Dataset  # noqa: E402
from trl import GRPOTrainer  # noqa: E402
from trl.trainer import utils  # noqa: E402

from calibrl.trl import CalibRLConfig, CalibRLTrainer, problem_rows  # noqa: E402

N = 4              # completions of a prompt
LONGEST = 24       # tokens of a completion
TOLERANCE = 1e-5

# sha256 of the sources that `calibrl.trl` calls or counts on, in TRL 1.16.0
SOURCES = {
    "GRPOTrainer._calculate_rewards": "736ae29b083840b5",
    "GRPOTrainer._compute_loss": "80295546bbdbf6f7",
    "GRPOTrainer._generate_and_score_completions": "1fa48922792dcd5c",
    "GRPOTrainer._get_per_token_logps_and_entropies": "ea73c3909275851d",
    "GRPOTrainer._prepare_inputs": "f824e7fb07147956",
    "pad": "5b5cbf5245d686e0",
    "shuffle_sequence_dict": "bab038755e57ed2b",
    "split_pixel_values_by_grid": "3aca66e33a7978d3",
    "split_tensor_dict": "b61a5760a03e95db",
    "unsplit_pixel_values_by_grid": "9d31b407fc5f4399",
}


@pytest.mark.parametrize("name", SOURCES)
def test_trl_is_as_it_was(name):
    "A new TRL changed this: read it beside `calibrl.trl`, then write its sum here."
    owner = GRPOTrainer if name.startswith("GRPOTrainer.") else utils
    source = inspect.getsource(inspect.unwrap(getattr(owner, name.rpartition(".")[2])))
    assert hashlib.sha256(source.encode()).hexdigest()[:16] == SOURCES[name]


def test_what_is_overridden_is_listed():
    text = open(inspect.getfile(ours), encoding="utf-8").read()
    inside = text[text.index("class Steps"):text.index("def mode_of")]
    overridden = set(re.findall(r"^    def (\w+)", inside, flags=re.M))
    assert overridden - {"__init__"} < {name.rpartition(".")[2] for name in SOURCES}
    assert all(hasattr(GRPOTrainer, name) for name in overridden)


def lucky(completions, expert, believed, **columns):
    "A verdict by the letters of a text alone; an expert is right where a column says so."
    texts = [turns[-1]["content"] for turns in completions]
    return [float(trust if text == known else sum(map(ord, text)) % 3 == 0)
            for text, known, trust in zip(texts, expert, believed, strict=True)]


class World:
    "A policy of ours, the trainer of TRL around its model, and a batch that TRL sampled."

    def __init__(self, place, world, bits=None, **settings):
        from calibrl import algebra, geometry
        from calibrl.rollout import Policy
        made = {"geometry": geometry, "algebra": algebra}[world]
        torch.manual_seed(0)
        self.policy = Policy.from_pretrained(made.tiny_checkpoint(), bits=bits, lora_rank=4,
                                             gradient_checkpointing=False)
        self.move(0.05)

        # TRL gives special tokens a probability, our engine does not: here it does
        self.policy.no_chance[:] = False
        self.problems = made.problems(2)
        rows = problem_rows(self.problems)
        rows = [row | dict(believed=i == 0) for i, row in enumerate(rows)]
        self.rows = [row for row in rows for _ in range(N)]
        args = dict(
            output_dir=str(place), max_steps=1, per_device_train_batch_size=2*N, num_generations=N,
            max_completion_length=LONGEST, use_cpu=True, report_to="none", disable_tqdm=True,
            save_strategy="no", gradient_checkpointing=False, correct_reward="lucky", bf16=False)
        self.args = CalibRLConfig(**args | settings)
        self.trainer = CalibRLTrainer(
            self.policy.model, [lucky], self.args, train_dataset=Dataset.from_list(rows),
            processing_class=self.policy.processor)

        # TRL rounds the adapter of a 4-bit model to bf16, which would hide small differences
        for weight in self.policy.trainable:
            weight.data = weight.data.float()
        self.trainer.current_gradient_accumulation_steps = self.args.gradient_accumulation_steps

    def move(self, size):
        "Move the adapter at random."
        with torch.no_grad():
            for weight in self.policy.trainable:
                weight += size*torch.randn(weight.shape)

    def sample(self):
        torch.manual_seed(7)
        self.trainer.model.train()
        self.batch = self.trainer._generate_and_score_completions(self.rows)

    def gradients(self):
        found = torch.cat([weight.grad.flatten() for weight in self.policy.trainable])
        self.policy.model.zero_grad()
        return found

    def by_trl(self):
        "TRL's loss and gradients, shuffled and split as TRL does it."
        torch.manual_seed(3)
        self.trainer.model.train()
        batch = utils.split_pixel_values_by_grid(self.batch)
        batch = utils.shuffle_sequence_dict(batch)
        total = 0.
        for part in utils.split_tensor_dict(batch, self.args.steps_per_generation):
            part = utils.unsplit_pixel_values_by_grid(part)
            loss = self.trainer._compute_loss(self.trainer.model, part)
            loss.backward()
            total += loss.item()
        return total, self.gradients()

    def logps(self, responses):
        "Log-probs by our engine, and the mask."
        found = self.policy.logps(self.problems, responses, 1.0)
        return found.logp, found.mask

    def by_us(self, reduce, old=None, expert=None, **settings):
        "The loss and gradients of `calibrl_loss`, or of `live_loss`."
        b = self.batch
        own = [ids[mask.bool()].tolist()
               for ids, mask in zip(b["completion_ids"], b["completion_mask"], strict=True)]
        groups = [own[:N], own[N:]]
        texts = [self.policy.tokens(self.rows[i]["expert"]) for i in (0, N)]
        if settings.pop("live", False):
            return self.live(groups, texts, reduce, settings)
        logp, mask = self.logps(groups)
        with torch.no_grad():
            e, e_mask = self.logps([[text] for text in texts])
            e = (e if expert is None else expert).repeat_interleave(N, 0)
            e_mask = e_mask.repeat_interleave(N, 0)
        T = max(logp.shape[1], e.shape[1])
        wide = [F.pad(t, (0, T - t.shape[1])) for t in (logp, mask, e, e_mask)]
        logp, mask, e, e_mask = wide
        old = logp.detach() if old is None else F.pad(old, (0, T - old.shape[1]))
        rewards = self.batch["correct"].float().view(2, N)
        loss, found = calibrl_loss(
            logp, old, e, group_advantages(rewards).flatten(), b["correct"], mask, reduce=reduce,
            expert_mask=e_mask, **settings)
        loss.backward()
        return loss.item(), self.gradients(), found

    def live(self, groups, texts, reduce, settings):
        "The same of `live_loss`, whose groups end with the expert's row."
        logp, mask = self.logps([[*group, text] for group, text in zip(groups, texts, strict=True)])
        right = torch.cat([self.batch["correct"].view(2, N), torch.tensor([[True], [False]])], 1)
        own = right[:, :N].float()
        adv = torch.cat([own, right[:, N:].float()], 1) - own.mean(1, keepdim=True)
        theirs = torch.tensor([*[False]*N, True]*2)
        loss, found = live_loss(
            logp, logp.detach(), logp.detach()*0, adv.flatten(), right.flatten(), mask,
            from_expert=theirs, has_expert=~theirs, reduce=reduce, **settings)
        loss.backward()

        # our mean is over all rows and tokens, TRL's over those of the answers
        share = len(mask)/(2*N) if reduce != "token-mean" else (mask.sum()/mask[~theirs].sum())
        return loss.item()*float(share), self.gradients()*share, found


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    "world(name, **settings): a `World` with a batch, made once."
    made = {}

    def get(name="geometry", **settings):
        key = (name, *sorted(settings.items()))
        if key not in made:
            made[key] = World(tmp_path_factory.mktemp("trl"), name, **settings)
            made[key].sample()
        return made[key]
    return get


def close(theirs, mine):
    assert theirs[0] == pytest.approx(mine[0], abs=TOLERANCE)
    assert theirs[1].abs().max() > 1e-3
    torch.testing.assert_close(theirs[1], mine[1], atol=TOLERANCE, rtol=0)


def set_to(w, **changes):
    "Change settings of a trainer that is made already; TRL keeps a copy of its own of one."
    for name, value in changes.items():
        setattr(w.args, name, value)
    w.trainer.loss_type = w.args.loss_type


@pytest.mark.parametrize("gap", GAPS)
@pytest.mark.parametrize("world_name, bits", [("geometry", None), ("algebra", 4)])
def test_one_step_equals_ours(world, world_name, bits, gap):
    w = world(world_name, bits=bits)
    assert 0 < w.batch["correct"].float().mean() < 1, "no mixed group: the test shows nothing"
    set_to(w, gap=gap, weight=0.3, loss_type="dapo")
    close(w.by_trl(), w.by_us("token-mean", gap=gap, weight=0.3))


@pytest.mark.parametrize("loss_type, reduce, factor", [
    ("grpo", "seq-mean-token-mean", 1), ("bnpo", "token-mean", 1), ("dapo", "token-mean", 1),
    ("luspo", "seq-mean-token-sum", 1), ("dr_grpo", "seq-mean-token-sum", 1/LONGEST)])
def test_each_loss_type_carries_the_term(world, loss_type, reduce, factor):
    w = world()
    set_to(w, gap="token", weight=0.3, loss_type=loss_type)
    loss, gradients, _ = w.by_us(reduce, weight=0.3)
    theirs = w.by_trl()
    close((theirs[0]/factor, theirs[1]/factor), (loss, gradients))


@pytest.mark.parametrize("loss_type, reduce", [
    ("cispo", "token-mean"), ("vespo", "token-mean"), ("sapo", "seq-mean-token-mean")])
def test_other_surrogates_get_the_same_term(world, loss_type, reduce):
    "What the term adds to TRL's own loss is what it adds to ours."
    w = world()
    set_to(w, gap="token", loss_type=loss_type, weight=0.)
    bare = w.by_trl()
    w.args.weight = 0.3
    theirs = w.by_trl()
    without = w.by_us(reduce, weight=0.)
    ours_now = w.by_us(reduce, weight=0.3)
    close((theirs[0] - bare[0], theirs[1] - bare[1]),
          (ours_now[0] - without[0], ours_now[1] - without[1]))


@pytest.mark.parametrize("loss_type, reduce", [("dapo", "token-mean"),
                                               ("grpo", "seq-mean-token-mean")])
def test_accumulation_changes_nothing(world, loss_type, reduce):
    "Two micro-batches of shuffled rows, of two lengths, make the step of one batch."
    w = world(per_device_train_batch_size=N, gradient_accumulation_steps=2)
    assert w.args.steps_per_generation == 2
    set_to(w, gap="sequence", weight=0.3, loss_type=loss_type)
    close(w.by_trl(), w.by_us(reduce, gap="sequence", weight=0.3))


def test_a_later_iteration_keeps_the_frozen_expert(world):
    "The policy has moved since it sampled: the ratio is not 1, and the expert is what it was."
    w = world(num_iterations=2)
    set_to(w, gap="token", weight=0.3, loss_type="dapo")
    old, frozen = w.batch["old_per_token_logps"], w.batch["expert_logps"][::N]
    before = [weight.detach().clone() for weight in w.policy.trainable]
    w.move(0.05)
    mine = w.by_us("token-mean", old=old*w.batch["completion_mask"], expert=frozen, weight=0.3)
    assert abs(mine[2]["ratio_mean"] - 1) > 1e-3 and mine[2]["clip_fraction"] > 0
    close(w.by_trl(), mine)
    with torch.no_grad():
        for weight, value in zip(w.policy.trainable, before, strict=True):
            weight.copy_(value)


@pytest.mark.parametrize("gap", GAPS)
@pytest.mark.parametrize("loss_type, reduce", [("dapo", "token-mean"),
                                               ("grpo", "seq-mean-token-mean")])
def test_one_live_step_equals_ours(world, gap, loss_type, reduce):
    w = world(live=True)
    set_to(w, gap=gap, weight=0.3, loss_type=loss_type)
    close(w.by_trl(), w.by_us(reduce, live=True, gap=gap, weight=0.3))


def test_only_a_verified_expert_is_live(world):
    w = world(live=True)
    assert w.batch["has_expert"].tolist() == [True]*N + [False]*N


def test_a_row_may_lack_its_expert(world):
    w = world()
    rows = [row | dict(expert=None) for row in w.rows[:N]] + w.rows[N:]
    batch = w.trainer._generate_and_score_completions(rows)
    assert batch["has_expert"].tolist() == [False]*N + [True]*N
    assert batch["expert_logps"][:N].abs().max() == 0
    assert w.trainer._compute_loss(w.trainer.model, batch).isfinite()


def test_evaluation_logs_the_term(world):
    w = world()
    w.trainer.model.eval()
    w.trainer.num_generations_eval = N
    try:
        loss, _, _ = w.trainer.prediction_step(w.trainer.model, w.rows, True)
    finally:
        w.trainer.model.train()
    assert loss.isfinite()
    assert set(w.trainer._metrics["eval"]) > {"calibrl/exploration_loss", "calibrl/gap_mean"}


def test_a_run_trains_saves_and_goes_on(tmp_path):
    "TRL's own loop: peft, accumulation, two iterations a batch, a checkpoint, and on from there."
    from peft import LoraConfig

    from calibrl.geometry import problems, tiny_checkpoint
    rows = [row | dict(believed=True) for row in problem_rows(problems(2))]

    def run(steps, **kwargs):
        args = CalibRLConfig(
            output_dir=str(tmp_path), max_steps=steps, per_device_train_batch_size=N,
            gradient_accumulation_steps=2, num_generations=N, num_iterations=2, save_steps=1,
            max_completion_length=LONGEST, use_cpu=True, report_to="none", disable_tqdm=True,
            logging_steps=1, learning_rate=1e-3, correct_reward="lucky", bf16=False)
        trainer = CalibRLTrainer(str(tiny_checkpoint()), [lucky], args,
                                 train_dataset=Dataset.from_list(rows),
                                 peft_config=LoraConfig(r=4, target_modules=["q_proj", "v_proj"]))
        trainer.train(**kwargs)
        return trainer
    first = run(1)
    log = first.state.log_history[0]
    assert float(log["grad_norm"]) > 0 and float(log["calibrl/expert_rows"]) == N
    second = run(2, resume_from_checkpoint=str(tmp_path/"checkpoint-1"))
    assert second.state.global_step == 2
    saved = torch.load(tmp_path/"checkpoint-2/training_args.bin", weights_only=False)
    assert type(saved) is CalibRLConfig and saved.alpha == 0.5


def config(tmp_path, **settings):
    return CalibRLConfig(output_dir=str(tmp_path), use_cpu=True, bf16=False, **settings)


def test_configs_survive_pickle(tmp_path):
    args = pickle.loads(pickle.dumps(config(tmp_path, alpha=0.3)))
    assert args.alpha == 0.3 and args.scale_rewards == "none" and args.delta == 3.0
    assert isinstance(args, CalibRLConfig)


@pytest.mark.parametrize("settings, message", [
    (dict(loss_type="ppo"), "loss_type: 'ppo' is unknown"),
    (dict(gap="words"), "gap: 'words' is unknown"),
    (dict(alpha=-1.), "alpha: needs a finite number"),
    (dict(live=True, scale_rewards="group"), 'live: needs scale_rewards="none"'),
    (dict(remove_unused_columns=True), "remove_unused_columns: must be False"),
])
def test_settings_that_mean_nothing_are_refused(tmp_path, settings, message):
    with pytest.raises(ValueError, match=re.escape(message)):
        config(tmp_path, **settings)


@pytest.mark.parametrize("changes, message", [
    (dict(correct_reward="judge"), "no reward function 'judge', there are lucky"),
    (dict(expert_column="solution"), "no column 'solution', only prompt, images, expert"),
])
def test_trainers_that_cannot_work_are_refused(world, changes, message):
    w = world()
    before = {name: getattr(w.args, name) for name in changes}
    try:
        set_to(w, **changes)
        with pytest.raises(ValueError, match=re.escape(message)):
            ours.check_trainer(w.trainer)
    finally:
        set_to(w, **before)


def test_pictures_with_colocated_vllm_are_refused(world):
    w = world()
    try:
        set_to(w, use_vllm=True, vllm_mode="colocate")
        with pytest.raises(ValueError, match='"colocate" corrupts pictures'):
            w.trainer._generate_and_score_completions(w.rows)
    finally:
        set_to(w, use_vllm=False)


def test_a_verdict_is_a_boolean(world):
    w = world()
    wrong = torch.tensor([[0.5], [1.]])
    with pytest.raises(ValueError, match="lucky must return 1"):
        ours.verdicts(wrong, w.trainer.reward_func_names, "lucky")


ENGINE = ["train", "--engine", "trl", "--prompts", "2", "--responses", "4", "--max-new-tokens",
          "24", "--save-every", "1"]
NAMES = {"step", "loss", "reward", "accuracy", "formatted", "entropy", "length", "truncated",
         "silent_groups", "gap", "gated_fraction", "exploration_loss", "clip_fraction", "grad_norm",
         "expert_rows", "groups_drawn", "tokens", "skipped_updates", "verifier_kills", "seconds",
         "sample"}


def metrics(out):
    "The metrics of a run without the clock."
    return [{k: v for k, v in row.items() if k != "seconds"}
            for row in read_jsonl(out/"metrics.jsonl")]


@pytest.fixture(scope="module")
def straight(tmp_path_factory):
    "A run of three steps that nothing interrupted."
    out = tmp_path_factory.mktemp("engine")/"run"
    assert main([*ENGINE, "--steps", "3", "--out", str(out)]) == 0
    return out


def test_a_run_leaves_what_our_engine_leaves(straight, tmp_path, capsys):
    ours = tmp_path/"ours"
    argv = [*ENGINE[:1], *ENGINE[3:], "--steps", "1", "--out", str(ours)]
    assert main(argv) == 0
    left, expected = [{p.name for p in out.iterdir()} for out in (straight, ours)]
    assert left == expected
    row = read_jsonl(straight/"metrics.jsonl")[-1]
    assert row.keys() == NAMES and row.keys() <= read_jsonl(ours/"metrics.jsonl")[-1].keys()
    assert row["expert_rows"] == 8 and row["groups_drawn"] == 2 and row["grad_norm"] > 0
    assert read_jsonl(straight/"samples.jsonl")[0].keys() == read_jsonl(
        ours/"samples.jsonl")[0].keys()
    assert 'engine = "trl"' in (straight/"config.toml").read_text(encoding="utf-8")

    # and the commands that come after find what they need
    assert main(["report", str(straight)]) == 0
    found = tmp_path/"eval"
    assert main(["eval", "--adapter", str(straight), "--limit", "2", "--benchmarks",
                 "geometry_test", "--max-new-tokens", "8", "--out", str(found)]) == 0
    assert len(read_jsonl(found/"answers.jsonl")) == 2
    assert main([*ENGINE, "--steps", "3", "--out", str(straight)]) == 0
    assert "is finished: 3 steps" in capsys.readouterr().out
    assert main([*ENGINE[:1], *ENGINE[3:], "--steps", "3", "--out", str(straight)]) == 2
    assert "engine was 'trl' and is None now" in capsys.readouterr().err


def test_a_run_that_broke_off_goes_on_as_if_it_had_not(straight, tmp_path, monkeypatch, capsys):
    "In its third step, a half-written checkpoint beside it; and the newest whole one is damaged."
    out = tmp_path/"run"
    argv = [*ENGINE, "--steps", "3", "--out", str(out)]
    right = engine_trl.after_step

    def breaks(run, *rest):
        if len(run.notes.rows) == 2:
            raise RuntimeError("broken off")
        return right(run, *rest)

    monkeypatch.setattr(engine_trl, "after_step", breaks)
    assert main(argv) == 2
    monkeypatch.undo()
    shutil.copytree(out/"checkpoints/step-2", out/"checkpoints/checkpoint-6")
    with open(out/"checkpoints/step-2/optimizer.pt", "ab") as file:
        file.write(b"0")
    assert main(argv) == 0
    said = capsys.readouterr().err
    assert "optimizer.pt is damaged" in said and "trying the one before" in said
    assert metrics(out) == metrics(straight) and len(metrics(out)) == 3
    weights = "adapter/adapter_model.safetensors"
    assert (out/weights).read_bytes() == (straight/weights).read_bytes()
    assert {p.name for p in (out/"checkpoints").glob("*-*")} == {"step-2", "step-3"}


def test_a_signal_ends_a_run_after_its_step(straight, tmp_path, monkeypatch, capsys):
    out = tmp_path/"run"
    argv = [*ENGINE, "--steps", "3", "--out", str(out)]
    right = engine_trl.after_step

    def asked(run, *rest):
        run.asked.append(signal.SIGTERM)
        return right(run, *rest)

    monkeypatch.setattr(engine_trl, "after_step", asked)
    assert main(argv) == 130
    assert "stopped after 1 of 3 steps" in capsys.readouterr().err
    monkeypatch.undo()
    assert main(argv) == 0
    assert metrics(out) == metrics(straight)


def test_a_run_validates_and_judges_by_a_reward_of_its_own(tmp_path):
    file = tmp_path/"mine.py"
    file.write_text("def odd(response, answer, **columns):\n"
                    "    return len(response) % 2 == 1, 0.25*(len(response) % 2)\n")
    out = tmp_path/"run"
    more = ["--steps", "1", "--val", "0.5", "--reward", f"{file}:odd", "--method", "calibrl_live"]
    assert main([*ENGINE, *more, "--out", str(out)]) == 0
    row, = metrics(out)
    assert row["reward"] == pytest.approx(row["accuracy"]/4) and row["reward_failures"] == 0
    assert 0 <= row["val_accuracy"] <= 1 and (out/"validation/step-0.jsonl").exists()


CONFIGS = Path(ours.__file__).parent/"assets"
MANY = pytest.mark.skipif("CALIBRL_TWO_PROCESSES" not in os.environ,
                          reason="several processes take minutes: make test-trl")


DEEPSPEED = pytest.mark.skipif(find_spec("deepspeed") is None, reason="DeepSpeed is not installed")


def environment(config, count):
    "What accelerate's launcher puts into the environment for a configuration file."
    from accelerate.commands.launch import _validate_launch_command, launch_command_parser
    from accelerate.utils.launch import prepare_deepspeed_cmd_env, prepare_multi_gpu_env
    argv = ["--config_file", str(CONFIGS/f"{config}.yaml"), "--num_processes", str(count), "x.py"]
    args, *_ = _validate_launch_command(launch_command_parser().parse_args(argv))
    if config == "zero3":
        args.deepspeed_fields_from_accelerate_config = ""
        _, env = prepare_deepspeed_cmd_env(args)
        env |= {"ACCELERATE_MIXED_PRECISION": "no", "DS_ACCELERATOR": "cpu"}
    else:
        env = prepare_multi_gpu_env(args)
    return {k: v for k, v in env.items() if os.environ.get(k) != v}


def kill_all(process):
    "kill -9 for a launcher and all that it started, none of which lives on."
    launcher = psutil.Process(process.pid)
    every = [launcher, *launcher.children(recursive=True)]
    for one in every:
        one.suspend()
    for one in every:
        one.kill()
    process.communicate()


def several(out, reward, config=None, count=1):
    "Start a run with given answers."
    tests = Path(__file__).parent
    argv = [str(tests/"given_answers.py"), *ENGINE, "--mini-batches", "1", "--steps", "3",
            "--reward", f"{reward}:odd", "--out", str(out)]
    if count > 1:
        argv = ["-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={count}", *argv]
    path = os.pathsep.join([str(tests.parent), os.environ.get("PYTHONPATH", "")])
    env = os.environ | {"PYTHONPATH": path, "OMP_NUM_THREADS": "1", "CALIBRL_DEBUG": "1",
                        "ACCELERATE_USE_CPU": "true"}
    env |= environment(config, count) if config else {}
    return subprocess.Popen([sys.executable, *argv], env=env, text=True, stdout=subprocess.PIPE,
                            stderr=subprocess.PIPE)


@pytest.fixture(scope="module")
def alone(tmp_path_factory):
    "A run of one process with given answers, and the reward that judges them."
    folder = tmp_path_factory.mktemp("several")
    reward = folder/"mine.py"
    reward.write_text("def odd(response, answer, **columns):\n"
                      "    return len(response) % 2 == 1, 0.25*(len(response) % 4)\n")
    process = several(folder/"alone", reward)
    _, said = process.communicate(timeout=900)
    assert process.returncode == 0, said[-2000:]
    return folder/"alone", reward


def test_accelerate_reads_each_configuration():
    "By the reader that `accelerate launch --config_file` has."
    from accelerate.commands.config.config_args import load_config_from_file
    read = {path.stem: load_config_from_file(str(path)) for path in CONFIGS.glob("*.yaml")}
    assert {name: str(found.distributed_type) for name, found in read.items()} == {
        "ddp": "DistributedType.MULTI_GPU", "fsdp2": "DistributedType.FSDP",
        "zero3": "DistributedType.DEEPSPEED"}
    assert read["fsdp2"].fsdp_config["fsdp_version"] == 2
    assert read["zero3"].deepspeed_config["zero_stage"] == 3
    assert environment("fsdp2", 2)["FSDP_VERSION"] == "2"
    assert "ACCELERATE_USE_FSDP" not in environment("ddp", 2)


PAGE = Path(__file__).resolve().parent.parent/"nbs/pages/scale.ipynb"
VALUES = {"MODEL": "a/model", "DATA": "problems.jsonl", "OUT": "runs/a", "SERVER": "node3",
          "HERE": str(CONFIGS), "HEAD": "node1", "SLURM_PROCID": "1"}


def command_lines(text):
    "The commands of a script or a page that hold a run of ours, as words, variables filled in."
    text = text.replace("\\\n", " ").replace("fsdp2.yaml --", f"{CONFIGS}/fsdp2.yaml --")
    text = re.sub(r"\$(\w+)", lambda found: VALUES.get(found[1], found[0]), text)
    lines = [line.strip() for line in text.splitlines()]
    return [shlex.split(line) for line in lines
            if re.match(r"(calibrl train|accelerate launch) ", line)]


def page_text():
    cells = json.loads(PAGE.read_text(encoding="utf-8"))["cells"]
    return "\n".join("".join(c["source"]) for c in cells if c["cell_type"] == "markdown")


@pytest.mark.parametrize("place, count", [("slurm.sh", 1), ("page", 3)])
def test_commands_of_scripts_and_page_are_ones(place, count):
    "accelerate parses its part of a line, and `calibrl train` the words behind it."
    from accelerate.commands.launch import _validate_launch_command, launch_command_parser
    text = page_text() if place == "page" else (CONFIGS/place).read_text(encoding="utf-8")
    found = command_lines(text)
    assert len(found) == count
    for words in found:
        if words[0] == "accelerate":
            args = launch_command_parser().parse_args(words[2:])
            args, *_ = _validate_launch_command(args)
            assert args.use_fsdp and args.module and args.training_script == "calibrl.cli"
            words = ["calibrl", *args.training_script_args]
        assert words[1] == "train"
        options = read_options("train", words[2:])
        assert by_engine(Config(), RunSpec(**of_kind(RunSpec, options)), ())[1].engine == "trl"


@pytest.mark.parametrize("script", ["slurm.sh", "vllm.sh"])
def test_bash_reads_each_script(script):
    done = subprocess.run(["bash", "-n", str(CONFIGS/script)], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def test_the_page_says_what_the_record_of_both_engines_says():
    record = json.loads((PAGE.parents[2]/"benchmarks/engines.json").read_text(encoding="utf-8"))
    right = {name: [verdict for run in record["runs"] if run["engine"] == name
                    for verdict in run["right"]] for name in ("calibrl", "trl")}
    before, ours, theirs = (f"{sum(values)/len(values):.1%}"
                            for values in (record["before"], right["calibrl"], right["trl"]))
    assert (f"From {before} before training, our engine came to {ours} and TRL's loop to"
            f" {theirs}") in page_text().replace("\n", " ")
    assert {run["seed"] for run in record["runs"]} == {0, 1, 2}
    assert len(record["before"]) == 128 and len(right["trl"]) == 3*128


@MANY
@pytest.mark.parametrize("count, config", [(2, "ddp"), (2, "fsdp2"), (4, "ddp"), (4, "fsdp2"),
                                           pytest.param(2, "zero3", marks=DEEPSPEED)])
def test_several_processes_make_the_run_of_one(alone, tmp_path, count, config):
    "Killed with all its processes after the first checkpoint, and gone on with."
    straight, reward = alone
    out = tmp_path/"run"
    process = several(out, reward, config, count)
    end = time.monotonic() + 900
    while not (out/"checkpoints/step-1").exists():
        assert process.poll() is None and time.monotonic() < end, process.stderr.read()[-2000:]
        time.sleep(0.01)
    kill_all(process)
    assert not (out/"summary.json").exists()

    # the same command
    process = several(out, reward, config, count)
    said, errors = process.communicate(timeout=900)
    assert process.returncode == 0, errors[-2000:]
    assert "unfinished: going on from step-" in said
    one, many = metrics(straight), metrics(out)
    assert len(one) == len(many) == 3 and one[0]["grad_norm"] > 0
    for row, other in zip(one, many, strict=True):
        assert row.keys() == other.keys()
        apart = {name: abs(value - other[name]) for name, value in row.items() if name != "sample"}
        assert max(apart.values()) < TOLERANCE, apart
    weights = [load_file(folder/"adapter/adapter_model.safetensors") for folder in (straight, out)]
    assert weights[0].keys() == weights[1].keys()
    assert all((weights[0][k] - weights[1][k]).abs().max() < 1e-4 for k in weights[0])
    assert (out/"adapter/base.json").exists()


def test_without_trl_a_run_is_refused_before_anything_loads(tmp_path, monkeypatch, capsys):
    monkeypatch.setitem(sys.modules, "trl", None)
    ours.classes.cache_clear()
    try:
        assert main([*ENGINE, "--out", str(tmp_path/"run")]) == 2
    finally:
        ours.classes.cache_clear()
    said = capsys.readouterr().err
    assert "pip install 'trl>=1.16,<1.17'" in said and said.count("\n") == 1
    assert not (tmp_path/"run").exists()


TWO = """
import torch, test_trl
from pathlib import Path
w = test_trl.World(Path({folder!r}), "algebra", per_device_train_batch_size=6)
start = 6*w.trainer.accelerator.process_index
twelve = [w.rows[i//4 % 2*4] for i in range(12)]
w.rows = twelve[start:start + 6]
w.sample()
wide = torch.nn.functional.pad(w.batch["expert_logps"], (0, 99))[:, :99]
every = w.trainer.accelerator.gather(wide)
for live in (False, True):
    w.args.live = live
    w.sample()
    loss = w.trainer._compute_loss(w.trainer.model, w.batch)
    loss.backward()
    assert loss.isfinite()
if start == 0:
    apart = [(every[i] - every[j]).abs().max().item() for i, j in ((4, 6), (0, 4))]
    print("apart", *apart)
"""


@MANY
def test_two_processes_share_a_group(tmp_path):
    "Rows 4 to 7 are one group, whose first two are in one process and the others in the next."
    script = tmp_path/"two.py"
    script.write_text(TWO.format(folder=str(tmp_path)), encoding="utf-8")
    tests = str(Path(__file__).parent)
    done = subprocess.run(
        [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2",
         str(script)], capture_output=True, text=True, timeout=300,
        env=os.environ | {"PYTHONPATH": f"{tests}:{Path(tests).parent}", "OMP_NUM_THREADS": "1"})
    assert done.returncode == 0, done.stderr[-2000:]
    same, other = done.stdout.split("apart")[1].split()[:2]
    assert float(same) < TOLERANCE < float(other)


def test_without_trl_one_line_says_so():
    code = ("import sys; sys.modules['trl'] = None\n"
            "import calibrl.trl\n"
            "try: from calibrl.trl import CalibRLTrainer\n"
            "except ImportError as error: print(error)")
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.stdout.startswith("calibrl.trl needs TRL (") and done.stdout.count("\n") == 1
