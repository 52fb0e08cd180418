"""The verifier as other engines call it: by their own code where they are installed, and by calls
recorded from the versions on the page nbs/pages/engines.md."""
import asyncio
import contextlib
import dataclasses
import importlib
import importlib.util
import json
import os
import re
import subprocess
import sys
import types
from pathlib import Path

import pytest
import torch

from calibrl.loss import calibrl_loss
from calibrl.rewards import (accuracy_reward, batch_scores, compute_score, format_reward,
                             reward_func)

PAGE = Path(__file__).resolve().parent.parent/"nbs/pages/engines.md"
RIGHT = "<think>2+2</think><answer>4</answer>"
WRONG = "<think>2+2</think><answer>5</answer>"
PROMPT = "<|im_start|>user\n2+2?<|im_end|>\n<|im_start|>assistant\n"


def lines_for(title):
    "The lines of the page that begin with the comment `# title`."
    blocks = re.findall(r"```\w+\n(.*?)```", PAGE.read_text(encoding="utf-8"), flags=re.S)
    found = [block for block in blocks if block.startswith(f"# {title}\n")]
    assert len(found) == 1, f"{len(found)} blocks of lines begin with {title!r}"
    return found[0]


def run_lines(title):
    "The names that the lines of the page define."
    space = {"__name__": "a_plugin"}
    exec(compile(lines_for(title), title, "exec"), space)
    return space


def engine(name):
    "A module of an engine, or a skip that says which it was."
    package = name.split(".")[0]
    if importlib.util.find_spec(package) is None:
        pytest.skip(f"{package} is not installed here")
    return importlib.import_module(name)


def stand_in(monkeypatch, name, **names):
    "A module with the names that an engine's has, in its place."
    parts = name.split(".")
    for i in range(1, len(parts) + 1):
        part = ".".join(parts[:i])
        monkeypatch.setitem(sys.modules, part, types.ModuleType(part))
    for key, value in names.items():
        setattr(sys.modules[name], key, value)


def test_python_alone_is_enough():
    "No package is there with -I -S: what engines pin is their own affair."
    code = (f"import sys; sys.path.insert(0, {str(PAGE.parents[2])!r})\n"
            "from calibrl.rewards import compute_score\n"
            "print(compute_score('m', '<answer>1/2</answer>', 0.5)['acc'])")
    done = subprocess.run([sys.executable, "-I", "-S", "-c", code], capture_output=True, text=True)
    assert done.stdout.strip() == "1.0", done.stderr


# Calls as the engines make them, written down from their sources

def test_trl_calls_with_columns_and_more():
    "TRL 1.16.0, grpo_trainer.py, _calculate_rewards"
    call = dict(prompts=[[{"role": "user", "content": "2+2?"}]]*2,
                completions=[[{"role": "assistant", "content": text}] for text in (RIGHT, WRONG)],
                completion_ids=[[1], [2]], answer=["B", "B"], options=[["3", "4"]]*2,
                expert=[RIGHT]*2, trainer_state=None, log_extra=print, log_metric=print)
    assert accuracy_reward(**call) == [1.0, 0.0]
    assert format_reward(**call) == [1.0, 1.0]


def test_ms_swift_calls_with_rows(monkeypatch):
    "ms-swift 4.6.0, rl_core/grpo_algorithm.py, compute_rewards_per_func"
    orm = type("ORM", (), {"__init__": lambda self, args=None, **kwargs: None})
    stand_in(monkeypatch, "swift.rewards", ORM=orm, orms={})
    orms = run_lines("ms-swift: plugin.py")["orms"]
    rewards = [orms[name](args=None) for name in ("calibrl_accuracy", "calibrl_format")]
    rows = dict(trainer_state=None, solution=["4", "4"], images=[None, None],
                messages=[[{"role": "user", "content": "2+2?"}]]*2)
    assert [reward([RIGHT, "5"], **rows) for reward in rewards] == [[1.0, 0.0], [1.0, 0.0]]


def test_trinity_calls_by_name_and_adds_up(monkeypatch):
    "Trinity-RFT 0.6.0, common/workflows/workflow.py, SimpleWorkflow.run"
    registry = types.SimpleNamespace(register_module=lambda name: lambda cls: cls)
    stand_in(monkeypatch, "trinity.common.rewards", REWARD_FUNCTIONS=registry, RewardFn=object)
    reward_fn = run_lines("Trinity-RFT: a plugin")["CalibrlReward"]()
    found = reward_fn(response=RIGHT, truth="4")
    assert sum(found.values()) == pytest.approx(1.1)
    assert sum(reward_fn(response="4", truth="4").values()) == 0


def test_verl_calls_by_name():
    "verl 0.9.1, workers/reward_manager/naive.py"
    extra = {"index": 3, "choices": ["3", "4"], "num_turns": None, "rollout_reward_scores": {}}
    found = compute_score(data_source="geo3k", solution_str=RIGHT, ground_truth="B",
                          extra_info=extra, reward_router_address=None)
    assert found == {"score": 1.1, "acc": 1.0, "format": 1.0}


def test_skyrl_steps_once(monkeypatch):
    "SkyRL 0.3.0, skyrl_gym/envs/base_text_env.py"
    base = type("BaseTextEnv", (), {})
    stand_in(monkeypatch, "skyrl_gym.envs.base_text_env", BaseTextEnv=base,
             BaseTextEnvStepOutput=dict)
    env = run_lines("SkyRL: environment.py")["CalibrlEnv"](
        env_config=None, extras={"reward_spec": {"ground_truth": "4"}})
    step = env.step(RIGHT)
    assert step["reward"] == 1.1 and step["done"]


def test_openrlhf_calls_with_whole_texts():
    "OpenRLHF 0.11.2, utils/agent.py, _fetch_rewards_via_func"
    found = reward_func([PROMPT + RIGHT + "<|im_end|>"], [PROMPT], ["4"])
    assert found["rewards"].tolist() == pytest.approx([1.1])
    assert found["extra_logs"]["format"].tolist() == [1.0]


def test_easyr1_calls_with_dicts():
    "EasyR1, verl/workers/reward/function.py, BatchFunctionRewardManager"
    names = run_lines("EasyR1: reward.py")
    assert names["REWARD_TYPE"] == "batch"
    call = [dict(response=RIGHT, response_length=9, ground_truth="4"),
            dict(response=WRONG, response_length=9, ground_truth="4")]
    assert [row["overall"] for row in names["compute_score"](call)] == [1.1, 0.1]
    assert batch_scores(call[0]) == {"overall": 1.1, "accuracy": 1.0, "format": 1.0}


@dataclasses.dataclass
class Sample:
    "ms-swift 4.6.0, rl_core/data.py, GRPOSample: the fields that the term touches"
    messages: list
    extra: dict
    response_token_ids: list = dataclasses.field(default_factory=list)
    response_loss_mask: list = dataclasses.field(default_factory=list)
    rollout_logprobs: list = dataclasses.field(default_factory=list)
    finish_reason: str = None
    add_eos: bool = False
    encoded: dict = None


class SwiftTrainer:
    "ms-swift 4.6.0, rlhf_trainers/grpo_trainer.py: the calls in their order, a word a token"
    reward_func_names = ["CalibrlAccuracy", "CalibrlFormat"]
    use_liger_loss = dynamic_num_samples = False
    template = types.SimpleNamespace(sequence_parallel_size=1)
    accelerator = types.SimpleNamespace(device=torch.device("cpu"))
    model = "the model"

    def _template_context(self, template):
        return contextlib.nullcontext()

    def split_by_mini_batches(self, samples):
        return [samples]

    def _prepare_batch_inputs(self, samples):
        for sample in samples:
            sample.encoded = encode_words(sample, self.template)
        inputs, batch = collate_words(samples, self.template, device="cpu")
        return [{"model_inputs": inputs, "grpo_batch": batch}]

    def _get_per_token_logps_and_entropies(self, model, model_inputs, grpo_batch,
                                           compute_entropy=False, origin_data=None):
        return model_inputs["words"]*-0.1, None

    def _compute_loss_and_metrics(self, model, model_inputs, grpo_batch):
        self._get_per_token_logps_and_entropies(model, model_inputs, grpo_batch)
        return torch.tensor(2.), {"mode": "train"}


def encode_words(sample, template, *, encode_prompt_only=False):
    "The lengths of the words of an answer."
    return {"words": [float(len(w)) for w in sample.messages[-1]["content"].split()]}


def collate_words(samples, template, *, device, padding_to=None, use_logits_to_keep=False):
    "Answers at the right, as after prompts of unequal length."
    rows = [sample.encoded["words"] for sample in samples]
    T = max(map(len, rows))
    words = torch.tensor([[0.]*(T - len(row)) + row for row in rows]).requires_grad_()
    batch = types.SimpleNamespace(completion_mask=words > 0, logits_to_keep=T)
    return {"words": words, "labels": None}, batch


def swift_term(monkeypatch):
    "The trainer that the page makes, over the recorded one."
    stand_in(monkeypatch, "swift.rlhf_trainers.utils", encode_sample=encode_words,
             collate_to_grpo_micro_batch=collate_words,
             get_even_process_data=lambda trainer, global_data: global_data)
    sys.modules["swift.rlhf_trainers"].GRPOTrainer = SwiftTrainer
    factory = types.SimpleNamespace(TRAINER_MAPPING={"grpo": "swift.rlhf_trainers.GRPOTrainer"})
    stand_in_beside(monkeypatch, "swift.trainers.trainer_factory", TrainerFactory=factory)
    trainer = run_lines("ms-swift: the term")["CalibRLTrainer"]
    assert factory.TRAINER_MAPPING["grpo"] == "a_plugin.CalibRLTrainer"
    return trainer


def stand_in_beside(monkeypatch, name, **names):
    "A module beside those of the same package that stand in already."
    for part in (name.rpartition(".")[0], name):
        monkeypatch.setitem(sys.modules, part, types.ModuleType(part))
    for key, value in names.items():
        setattr(sys.modules[name], key, value)


def rows_of_swift():
    "Two answers, the first with an expert; what each loses by a wrong word is its length."
    asked = {"role": "user", "content": "2+2?"}
    return [Sample([asked, {"role": "assistant", "content": "a bbb"}], {"expert": "aa b cccc"}),
            Sample([asked, {"role": "assistant", "content": "a b ccc"}], {})]


def test_ms_swift_adds_the_term(monkeypatch):
    trainer = swift_term(monkeypatch)()
    trainer._rewards_per_func = torch.tensor([[1., 1.], [0., 1.]])
    batch, = trainer._prepare_batch_inputs(rows_of_swift())
    batch["grpo_batch"].advantages = torch.tensor([[.5]*3, [-.5]*3])
    loss, _ = trainer._compute_loss_and_metrics("the model", *batch.values())

    # the same rows, answers and experts from their first token on
    logp = -.1*torch.tensor([[1., 3., 0.], [1., 1., 3.]])
    expert = -.1*torch.tensor([[2., 1., 4.], [0., 0., 0.]])
    _, found = calibrl_loss(
        logp, logp, expert, torch.tensor([.5, -.5]), torch.tensor([True, False]), logp != 0,
        has_expert=torch.tensor([True, False]), alpha=trainer.alpha, weight=1.)
    assert found["exploration_loss"] != 0
    assert loss.item() == pytest.approx(2 + trainer.weight*found["exploration_loss"], abs=1e-6)
    words, = torch.autograd.grad(loss, batch["model_inputs"]["words"])
    assert words[0, 1:].abs().min() > 0 and not words[1].any()


@pytest.mark.parametrize("changes, message", [
    ({"correct_reward": "Other"}, "no reward 'Other', there are CalibrlAccuracy, CalibrlFormat"),
    ({"use_liger_loss": True}, "use_liger_kernel: the exploration term does not go with it"),
    ({"dynamic_num_samples": True}, "multi_turn_scheduler: the exploration term")])
def test_ms_swift_refuses_at_once(changes, message, monkeypatch):
    made = type("Trainer", (swift_term(monkeypatch),), changes)
    with pytest.raises(ValueError, match=re.escape(message)):
        made()


def test_ms_swift_wants_verdicts_of_one_or_zero(monkeypatch):
    trainer = swift_term(monkeypatch)()
    trainer._rewards_per_func = torch.tensor([[1., 1.], [.1, 1.]])
    with pytest.raises(ValueError, match="CalibrlAccuracy must return 1"):
        trainer._prepare_batch_inputs(rows_of_swift())


# The engines' own code, where it is installed

def test_ms_swift_itself():
    algorithm = engine("swift.rl_core.grpo_algorithm")
    sample = importlib.import_module("swift.rl_core.data").GRPOSample
    orms = run_lines("ms-swift: plugin.py")["orms"]
    funcs = [orms[name](args=None) for name in ("calibrl_accuracy", "calibrl_format")]
    samples = [sample(messages=[{"role": "user", "content": "2+2?"},
                                {"role": "assistant", "content": text}],
                      extra={"solution": "B", "choices": ["3", "4"]}) for text in (RIGHT, "5")]
    found = algorithm.compute_rewards_per_func(samples, funcs, None, torch.device("cpu"))
    assert found.tolist() == [[1.0, 1.0], [0.0, 0.0]]


SWIFT_RUN = """
import sys
from swift import RLHFArguments, rlhf_main
from swift.rlhf_trainers import grpo_trainer
import torch
folder, root, model = sys.argv[1:]
args = dict(rlhf_type="grpo", model=model, model_type="qwen2", template="qwen2_5",
            dataset=folder + "/data.jsonl", external_plugins=folder + "/plugin.py",
            reward_funcs="calibrl_accuracy", output_dir=folder + "/out", num_generations=4,
            per_device_train_batch_size=4, gradient_accumulation_steps=2, max_steps=1,
            max_completion_length=24, use_vllm="false", torch_dtype="float32", use_hf="true",
            save_strategy="no", report_to="none", dataloader_num_workers=0, tuner_type="lora",
            chord_sft_dataset=folder + "/sft.jsonl", chord_sft_per_device_train_batch_size=1,
            chord_mu_warmup_steps=0, chord_mu_decay_steps=10, chord_mu_peak=0.4,
            chord_mu_valley=0.1)
chord = grpo_trainer.compute_chord_loss
seen = []
def noting(trainer, grpo_loss):
    seen.append(chord(trainer, grpo_loss))
    assert seen[-1] != grpo_loss
    return seen[-1]
grpo_trainer.compute_chord_loss = noting
rlhf_main([part for name, value in args.items() for part in ("--" + name, str(value))])
plugin = next(m for n, m in sys.modules.items() if n.startswith("_swift_external_"))
trainer, losses, tables = plugin.trainer, plugin.losses, plugin.tables

# what was added to GRPO mixed with CHORD is the term, from the loss that we train with
from calibrl.loss import calibrl_loss
for total, before, (logp, batch) in zip(losses, seen, tables, strict=True):
    expert = batch.expert_logps
    T = max(logp.shape[1], expert.shape[1])
    pad = lambda table: torch.nn.functional.pad(table, (0, T - table.shape[1]))
    mask = batch.completion_mask.bool()
    assert mask[:, 0].all()                           # one prompt a micro-batch: nothing to move
    _, found = calibrl_loss(pad(logp), pad(logp), pad(expert), batch.advantages[:, 0],
                            torch.tensor(batch.correct), pad(mask), weight=1.)
    assert abs(float(total - before) - 0.1*found["exploration_loss"]) < 1e-6, (total, before)
assert any(total != before for total, before in zip(losses, seen))

print("IT IS THE TERM", len(losses), flush=True)
"""
SWIFT_PLUGIN = """
import torch
class CalibrlAccuracy(ORM):
    def __call__(self, completions, **columns):
        return [float(i % 3 == 0) for i in range(len(completions))]
orms["calibrl_accuracy"] = CalibrlAccuracy
losses, tables, trainer = [], [], None

class Watched(CalibRLTrainer):
    def _prepare_batch_inputs(self, samples):
        batches = super()._prepare_batch_inputs(samples)

        # the first expert's log-probs, by a row of its own
        first, encode = samples[0], self.template.encode
        asked = [*first.messages[:-1], {"role": "assistant", "content": first.extra["expert"]}]
        with self._template_context(self.template), torch.no_grad():
            row = encode({"messages": asked})
            ids, labels = torch.tensor([row["input_ids"]]), torch.tensor(row["labels"])
            logits = self.model(input_ids=ids).logits[0, :-1]
            logp = (logits/self.temperature).log_softmax(-1)
            alone = logp.gather(1, ids[0, 1:, None])[:, 0][labels[1:] != -100]
        found = batches[0]["grpo_batch"].expert_logps[0, :len(alone)]
        assert len(alone) > 5 and (found - alone).abs().max() < 1e-4
        return batches

    def _compute_loss_and_metrics(self, model, model_inputs, grpo_batch):
        global trainer
        trainer, kept = self, []
        usual = self._get_per_token_logps_and_entropies
        def noting(*args, **kwargs):
            out = usual(*args, **kwargs)
            kept.append(out[0].detach())
            return out
        self._get_per_token_logps_and_entropies = noting
        out = super()._compute_loss_and_metrics(model, model_inputs, grpo_batch)
        del self._get_per_token_logps_and_entropies
        losses.append(out[0].detach())
        tables.append((kept[0], grpo_batch))
        return out

TrainerFactory.TRAINER_MAPPING["grpo"] = f"{__name__}.Watched"
"""


def test_ms_swift_itself_adds_the_term_beside_chord(tmp_path):
    "A step of `swift rlhf` with CHORD switched on, on a tiny model, by ms-swift's own code."
    engine("swift.rlhf_trainers")
    from calibrl.algebra import problems, tiny_checkpoint
    asked = [{"role": "user", "content": p.question} for p in problems(4, seed=1)]
    data = [dict(messages=[ask], solution=p.answer, expert=p.expert)
            for ask, p in zip(asked, problems(4, seed=1), strict=True)]
    sft = [dict(messages=[ask, {"role": "assistant", "content": row["expert"]}])
           for ask, row in zip(asked, data, strict=True)]
    for name, rows in (("data", data), ("sft", sft)):
        (tmp_path/f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    lines = lines_for("ms-swift: the term") + "from swift.rewards import ORM, orms\n"
    (tmp_path/"plugin.py").write_text(lines + SWIFT_PLUGIN)
    (tmp_path/"run.py").write_text(SWIFT_RUN)
    root = str(PAGE.parents[2])
    done = subprocess.run(
        [sys.executable, tmp_path/"run.py", tmp_path, root, str(tiny_checkpoint())],
        env=os.environ | {"PYTHONPATH": root, "CUDA_VISIBLE_DEVICES": ""}, capture_output=True,
        text=True, timeout=900, check=False)
    assert "IT IS THE TERM 2" in done.stdout, done.stdout[-2000:] + done.stderr[-4000:]


def test_verl_itself():
    reward = engine("verl.trainer.ppo.reward")
    config = importlib.import_module("omegaconf").OmegaConf.create(lines_for("verl"))
    function = reward.get_custom_reward_fn(config)
    manager = importlib.import_module("verl.workers.reward_manager.naive").NaiveRewardManager
    proto = importlib.import_module("verl").DataProto
    tokenizer = types.SimpleNamespace(decode=lambda ids, **kwargs: "".join(map(chr, ids)))
    ids = torch.tensor([[ord(c) for c in RIGHT], [ord(c) for c in WRONG]])
    info = [{"index": i, "options": ["3", "4"]} for i in range(2)]
    data = proto.from_dict(
        {"prompts": ids[:, :4], "responses": ids,
         "attention_mask": torch.ones(2, 4 + ids.shape[1], dtype=torch.long)},
        {"reward_model": [{"ground_truth": "B"}]*2, "data_source": ["m"]*2, "extra_info": info})
    found = manager(tokenizer, 0, function)(data, return_dict=True)
    assert found["reward_tensor"][:, -1].tolist() == pytest.approx([1.1, 0.1])
    assert found["reward_extra_info"]["acc"] == [1.0, 0.0]


def test_trinity_itself():
    rewards = engine("trinity.common.rewards")
    run_lines("Trinity-RFT: a plugin")
    made = rewards.REWARD_FUNCTIONS.get("calibrl_reward")
    assert issubclass(made, rewards.RewardFn)
    assert made()(response=RIGHT, truth="4") == {"accuracy": 1.0, "format_score": 0.1}


def test_skyrl_itself(tmp_path, monkeypatch):
    engine("skyrl_gym")
    (tmp_path/"environment.py").write_text(lines_for("SkyRL: environment.py"), encoding="utf-8")
    monkeypatch.syspath_prepend(str(tmp_path))
    gym = run_lines("SkyRL: before training")["skyrl_gym"]
    env = gym.make("calibrl", env_config={}, extras={"reward_spec": {"ground_truth": "4"}})
    assert env.step(WRONG)["reward"] == 0.1


def test_openrlhf_itself(tmp_path):
    agent = engine("openrlhf.utils.agent")
    path = tmp_path/"reward.py"
    path.write_text(lines_for("OpenRLHF: reward.py"), encoding="utf-8")
    executor = agent.SingleTurnAgentExecutor(str(path))
    found = asyncio.run(executor._fetch_rewards_via_func([PROMPT + RIGHT], [PROMPT], ["4"]))
    assert found[0]["rewards"].tolist() == pytest.approx([1.1])


def trinity_batch():
    "Two answers to one question, as Trinity-RFT's trainer collates what its workflow returned."
    experience = importlib.import_module("trinity.common.experience")
    config = importlib.import_module("trinity.common.config")
    workflow = importlib.import_module("trinity.common.workflows.workflow")
    names = run_lines("Trinity-RFT: the term")

    class Model:
        "The calls of `ModelWrapper` that a workflow makes."
        def chat(self, messages, **kwargs):
            return [experience.Experience(
                tokens=torch.arange(3 + n), prompt_length=3, logprobs=-torch.ones(n)/n,
                response_text=text) for n, text in ((4, RIGHT), (2, WRONG))]

        def convert_messages_to_experience(self, messages):
            assert messages[-1] == {"role": "assistant", "content": "expert"}
            mask = torch.tensor([True, True, False, True])
            return experience.Experience(tokens=torch.arange(7), prompt_length=3,
                                         logprobs=-torch.arange(1., 5.), action_mask=mask)
    reward = importlib.import_module("trinity.common.rewards").REWARD_FUNCTIONS.get(
        "calibrl_reward") or run_lines("Trinity-RFT: a plugin")["CalibrlReward"]
    task = workflow.Task(
        workflow=names["ExpertWorkflow"], reward_fn=reward, raw_task={"q": "2+2?", "a": "4",
                                                                     "expert": "expert"},
        format_args=config.FormatConfig(prompt_key="q", response_key="a"))
    found = names["ExpertWorkflow"](task=task, model=Model()).run()
    sent = experience.Experience.deserialize_many(experience.Experience.serialize_many(found))
    for one, advantage in zip(sent, (0.5, -0.5), strict=True):
        one.advantages = torch.full_like(one.logprobs, advantage)
    collate = importlib.import_module("trinity.trainer.verl.utils").to_data_proto
    logger = importlib.import_module("logging").getLogger()
    return names, collate(sent, 0, None, logger).batch


def test_trinity_carries_the_term_from_sampler_to_loss():
    engine("verl")
    engine("trinity.algorithm.policy_loss_fn")
    defined, batch = trinity_batch()
    loss_fn = defined["CalibRLLoss"](alpha=0.5, weight=1.)
    logprob = batch["rollout_log_probs"].clone().requires_grad_()
    names = ("response_mask", "advantages", "expert_logprob", "correct")
    given = {key: batch[key] for key in names}
    loss, found = loss_fn(logprob=logprob, old_log_probs=logprob.detach(), **given)
    loss.backward()
    assert set(loss_fn.select_keys) > {"expert_logprob", "correct", "old_log_probs"}
    assert batch["correct"].tolist() == [True, False]
    assert batch["expert_logprob"][0, :5].tolist() == [-1., -2., 0., -4., 0.]
    assert found["expert_rows"] == 2 and logprob.grad.abs().sum() > 0


@pytest.mark.parametrize("call, message", [
    (lambda: accuracy_reward([RIGHT], answer=[["4"]]), "row 0: the ground truth must be a text"),
    (lambda: accuracy_reward([RIGHT, 7], answer=["4", "4"]), "row 1: needs a text or a list"),
    (lambda: accuracy_reward(RIGHT, answer=["4"]), "completions must be a list, got str"),
    (lambda: accuracy_reward([RIGHT], answer=[""]), "row 0: answer must be a non-empty string"),
    (lambda: accuracy_reward([RIGHT], answer=["B"], options=["ab"]), "options must be a list"),
    (lambda: compute_score("m", RIGHT, "4", extra_info="x"), "extra_info must be a dict"),
    (lambda: compute_score("m", RIGHT, [4]), "the ground truth must be a text or a number"),
    (lambda: batch_scores([{"response": RIGHT}]), "row 0 must be a dict with response"),
    (lambda: reward_func([RIGHT], [PROMPT], ["4"]), "row 0: the query does not hold the end"),
])
def test_wrong_data_is_named(call, message):
    with pytest.raises(ValueError, match=re.escape(message)):
        call()


def test_a_response_of_any_kind_is_only_wrong():
    hostile = ["", "\ud800", "<answer>"*200, "<answer>" + "("*9999 + "</answer>", "a\x00b"]
    assert accuracy_reward(hostile, answer=["4"]*5) == [0.0]*5
