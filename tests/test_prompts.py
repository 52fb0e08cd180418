"""What a run is told of its data and its prompts, and that all of it is asked alike."""
import json
import re
import shutil
from dataclasses import replace

import pytest
import torch
from PIL import Image

from calibrl import train as T
from calibrl.algebra import tiny_checkpoint
from calibrl.cli import main
from calibrl.config import Config, load_config
from calibrl.eval import evaluate
from calibrl.eval.hashes import prompts_of
from calibrl.prompts import INSTRUCTIONS, pixels_of, prompt_text
from calibrl.rollout import Policy, expert_rows, rollout
from calibrl.tasks import Problem
from calibrl.verify import sandbox

ONE_STEP = ["--steps", "1", "--prompts", "2", "--responses", "2", "--mini-batches", "1",
            "--max-new-tokens", "4"]


# ---------------------------------------------------------------- which data

def sums(path, start):
    rows = [{"question": f"Solve x+{i}={2*i}.", "answer": str(i)} for i in range(start, start + 4)]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))


def test_train_reads_the_split_and_configuration_that_data_check_reads(tmp_path, capsys):
    for name, start in (("easy", 1), ("hard", 40)):
        (tmp_path/"data"/name).mkdir(parents=True)
        sums(tmp_path/"data"/name/"train.jsonl", start)
        sums(tmp_path/"data"/name/"test.jsonl", start + 20)
    card = ["---", "configs:"]
    for name in ("easy", "hard"):
        card += [f"- config_name: {name}", "  data_files:"]
        for split in ("train", "test"):
            card += [f"  - split: {split}", f"    path: {name}/{split}.jsonl"]
    (tmp_path/"data"/"README.md").write_text("\n".join([*card, "---", ""]))

    which = ["--data", str(tmp_path/"data"), "--name", "hard", "--split", "test"]
    options = ["train", "--model", str(tiny_checkpoint()), *ONE_STEP, "--out", str(tmp_path/"run")]
    assert main([*options, *which]) == 0, capsys.readouterr().err
    assert "4 problems of 4 rows" in capsys.readouterr().out
    config = (tmp_path/"run"/"config.toml").read_text()
    assert 'name = "hard"' in config and 'split = "test"' in config

    # another one is another run
    assert main([*options, *which[:-1], "train"]) == 2
    assert "split was 'test' and is 'train' now" in capsys.readouterr().err


@pytest.mark.parametrize("option", ["--map", "--split", "--name", "--root"])
def test_the_embedded_world_has_no_columns_or_splits(option, tmp_path, capsys):
    assert main(["train", option, "x=y", "--out", str(tmp_path/"run"), *ONE_STEP]) == 2
    assert f"{option} is about a file or data set" in capsys.readouterr().err


# ---------------------------------------------------------------- the judge

LATEX = [Problem("How long is the diagonal?", r"2\sqrt{3}")]*2
PLAIN = [Problem("How long is the side?", "2")]*2


@pytest.fixture
def judge_starts(monkeypatch):
    "The list of what happens: the judge starts, responses are sampled."
    happened = []
    monkeypatch.setattr(sandbox.JUDGES, "control", None)
    monkeypatch.setattr(sandbox.JUDGES, "warm", lambda: happened.append("judge"))
    monkeypatch.setattr(Policy, "sample", sampled(Policy.sample, happened))
    return happened


def sampled(sample, happened):
    def noted(*args, **options):
        happened.append("sample")
        return sample(*args, **options)
    return noted


@pytest.mark.parametrize("problems, first", [(LATEX, ["judge", "sample"]), (PLAIN, ["sample"])])
def test_the_judge_starts_before_the_first_step_if_it_will_be_asked(judge_starts, problems, first):
    policy = Policy.from_pretrained(tiny_checkpoint(), lora_rank=2)
    judge_starts.clear()            # the check at load samples, too
    cfg = Config(steps=1, prompts=2, responses=2, mini_batches=1, max_new_tokens=2)
    list(T.train(policy, problems, cfg))
    assert judge_starts[:len(first)] == first and judge_starts.count("judge") == len(first) - 1


@pytest.mark.parametrize("problems, first", [(LATEX, ["judge", "sample"]), (PLAIN, ["sample"])])
def test_the_judge_starts_before_the_first_answer(judge_starts, problems, first):
    policy = Policy.from_pretrained(tiny_checkpoint(), lora_rank=0)
    judge_starts.clear()
    evaluate(policy, problems, max_new_tokens=2)
    assert judge_starts == first


# ---------------------------------------------------------------- models that always think

EXPERT = "<think>\n1+1=2</think><answer>2</answer>"
BEHIND = "<|im_start|>assistant\n"          # where a response begins in the tiny models' template
ASKED = "{% if enable_thinking is defined and enable_thinking %}<think>\n{% endif %}"
NOT_NOW = "{% if enable_thinking is defined and not enable_thinking %}<think></think>{% endif %}"


def ending_with(folder, end, place):
    "A copy of a checkpoint whose chat template ends each prompt with a text."
    shutil.copytree(folder, place)
    file = place/"chat_template.jinja"
    template = file.read_text()
    assert template.count(BEHIND) == 1
    file.write_text(template.replace(BEHIND, BEHIND + end))
    return place


def some(kind):
    pictures = (Image.new("RGB", (56, 56), "red"),) if "vl" in kind else ()
    return Problem("1 + 1 = ?", "2", pictures, expert=EXPERT)


@pytest.fixture(params=["qwen3", "qwen3_vl"])
def thinker(request, checkpoint, tmp_path):
    "A policy whose template opens the thought, and a problem that it can read."
    folder = ending_with(checkpoint(request.param), "<think>\n", tmp_path/"model")
    return Policy.from_pretrained(folder, lora_rank=2), some(request.param)


@pytest.mark.parametrize("end, opened", [
    ("", ""), ("<think>", "<think>"), ("<think>\n", "<think>\n"),
    ("<think>\n\n</think>\n\n", ""), (ASKED, ""), (NOT_NOW, "")])
def test_the_template_is_read_as_it_is_by_default(checkpoint, tmp_path, end, opened):
    folder = ending_with(checkpoint("qwen3"), end, tmp_path/"model")
    assert Policy.from_pretrained(folder, lora_rank=0).opening == opened


def test_an_expert_goes_on_where_the_prompt_ends(thinker):
    policy, problem = thinker
    whole = prompt_text(policy.processor, problem) + policy.decode(policy.tokens(EXPERT))
    asked, said = whole.split(BEHIND)
    assert said == EXPERT                               # once "<think>", and nothing is lost
    assert policy.tokens("It is 2.") == policy.tokens(policy.tokens("It is 2."))

    # the baseline of the gap, by the model alone: the tokens behind the prompt, one by one
    ro = rollout(policy, [problem], n=2, max_new_tokens=3)
    rest = policy.tokenizer("1+1=2</think><answer>2</answer><|im_end|>")["input_ids"]
    inputs = policy.prompt(problem)
    ids = torch.cat([inputs["input_ids"], torch.tensor([rest])], 1)
    longer = {"input_ids": ids, "attention_mask": torch.ones_like(ids)}
    if "mm_token_type_ids" in inputs:
        types = inputs["mm_token_type_ids"]
        more = types.new_zeros(1, len(rest))
        longer["mm_token_type_ids"] = torch.cat([types, more], 1)
    with torch.no_grad():
        logits = policy.model(**{**inputs, **longer}).logits[0, -len(rest) - 1:-1]
    logits[:, policy.no_chance] = -torch.inf
    true = logits.log_softmax(-1)[range(len(rest)), rest]
    assert torch.allclose(ro.expert_logp[0, :len(rest)], true, atol=1e-4)
    assert int(ro.expert_mask[0].sum()) == len(rest)


SAID = [    # a response that begins inside the thought: right?, well formed?
    ("1+1=2</think><answer>2</answer>", True, True),
    ("is it <answer>3</answer>? no</think><answer>2</answer>", True, False),
    ("is it <answer>2</answer>? no</think><answer>3</answer>", False, False),
    ("it is <answer>2</answer>, I think, or", False, False),
    ("<think>1+1=2</think><answer>2</answer>", True, False)]


@pytest.mark.parametrize("text, correct, formatted", SAID)
def test_a_response_begins_inside_the_thought(thinker, monkeypatch, text, correct, formatted):
    policy, problem = thinker
    monkeypatch.setattr(Policy, "decode", lambda self, ids: text)
    score, = rollout(policy, [problem], n=1, max_new_tokens=2).scores
    assert (score.correct, score.formatted) == (correct, formatted)
    row, = evaluate(policy, [problem], max_new_tokens=2)
    assert (row["correct"], row["formatted"]) == ([correct], [formatted])
    assert row["responses"] == [text]


def test_an_experts_row_is_trained_on_without_the_tag_that_the_prompt_has(thinker):
    policy, problem = thinker
    other = replace(problem, expert="1+1=2</think><answer>2</answer>")
    rows = expert_rows(policy, rollout(policy, [problem, other], n=2, max_new_tokens=2))
    assert rows.responses[0] == rows.responses[1] == policy.tokens(other.expert)
    assert all(score.correct and score.formatted for score in rows.scores)
    assert torch.equal(rows.old_logp[0], rows.old_logp[1])


def test_a_logged_response_may_begin_inside_a_thought(tmp_path):
    from calibrl.eval.lmms import from_lmms
    for text, correct, _ in SAID[:3]:
        log = {"doc_id": 0, "input": "1 + 1 = ?", "target": "2", "resps": [[text]]}
        (tmp_path/"log.jsonl").write_text(json.dumps(log) + "\n")
        row, = from_lmms(tmp_path/"log.jsonl")
        assert row["correct"] == [correct] and row["responses"] == [text]


# ---------------------------------------------------------------- words and pictures

MINE = "Think first. Then answer in tags."
ASKING = ["--instruction", "paper", "--system", "You teach mathematics.", "--max-pixels", "3136"]
ASKED_SO = {"instruction": INSTRUCTIONS["paper"], "system": "You teach mathematics.",
            "pixels": [784, 3136]}


@pytest.fixture
def asked(tiny, monkeypatch):
    "How the policies that sampled were asked, one entry a call."
    Policy.from_pretrained(tiny, lora_rank=0)      # tried at its first load, which samples, too
    seen = []
    sample = Policy.sample

    def noted(policy, problems, *args, **options):
        ids = policy.prompt(problems[0])["input_ids"]
        image_id = policy.tokenizer.convert_tokens_to_ids("<|image_pad|>")
        seen.append((prompts_of(policy), int((ids == image_id).sum())))
        return sample(policy, problems, *args, **options)
    monkeypatch.setattr(Policy, "sample", noted)
    return seen


def test_a_run_is_asked_as_it_is_told_and_evaluated_alike(asked, tmp_path, capsys):
    run, exam = tmp_path/"run", tmp_path/"exam"
    train = ["train", *ONE_STEP, "--out", str(run)]
    assert main([*train, *ASKING]) == 0, capsys.readouterr().err
    assert asked == [(ASKED_SO, 4)]                     # of 16 visual tokens as the model has it
    assert "784 to 3,136 pixels: 1 to 4 visual tokens each" in capsys.readouterr().out
    config = load_config(run/"config.toml")
    assert (config.instruction, config.max_pixels) == ("paper", 3136)

    # other words or pictures are another run
    for other, said in ((["--instruction", "ours"], "instruction was 'paper' and is 'ours' now"),
                        (["--max-pixels", "784"], "max_pixels was 3136 and is 784 now")):
        assert main([*train, *ASKING, *other]) == 2
        assert said in capsys.readouterr().err

    # an evaluation asks as the run did, and notes it
    grade = ["eval", "--adapter", str(run), "--benchmarks", "geometry_test", "--limit", "2",
             "--max-new-tokens", "4", "--out", str(exam)]
    assert main(grade) == 0, capsys.readouterr().err
    assert asked[1:] == [(ASKED_SO, 4)]
    assert "as in the run of the adapter: instruction 'paper'" in capsys.readouterr().out
    row = json.loads((exam/"answers.jsonl").read_text().splitlines()[0])
    assert row["run"]["prompts"] == ASKED_SO
    assert json.loads((exam/"eval.json").read_text())["max_pixels"] == 3136

    # or as it is told: that is another evaluation
    assert main([*grade, "--instruction", "ours", "--system", "none"]) == 2
    assert "instruction" in capsys.readouterr().err
    assert main([*grade[:-1], str(tmp_path/"other"), "--instruction", "ours", "--system", "none",
                 "--max-pixels", "12544"]) == 0
    assert asked[2:] == [(None, 16)]

    # what is exported for serving has pictures of that size
    assert main(["export", str(run), "--out", str(tmp_path/"merged")]) == 0
    from transformers import AutoProcessor
    processor = AutoProcessor.from_pretrained(tmp_path/"merged", trust_remote_code=False)
    assert pixels_of(processor).most == 3136


def test_the_text_of_a_file_is_kept_not_its_name(tmp_path, capsys):
    (tmp_path/"mine.txt").write_text(MINE + "\n")
    train = ["train", *ONE_STEP, "--out", str(tmp_path/"run"), "--instruction",
             str(tmp_path/"mine.txt")]
    assert main(train) == 0, capsys.readouterr().err
    assert load_config(tmp_path/"run"/"config.toml").instruction == MINE
    assert main([*train[:-1], MINE]) == 0               # finished, and the same run
    (tmp_path/"mine.txt").write_text("Answer at once, in tags.")
    assert main(train) == 2
    assert "instruction was 'Think first" in capsys.readouterr().err


def test_options_in_toml(tmp_path):
    (tmp_path/"mine.txt").write_text(MINE)
    toml = tmp_path/"a.toml"
    toml.write_text(f'instruction = "{tmp_path}/mine.txt"\nsystem = "Be kind."\nmin_pixels = 784')
    cfg = load_config(toml, instruction="paper")
    assert (cfg.instruction, cfg.system, cfg.min_pixels) == ("paper", "Be kind.", 784)
    assert load_config(toml).instruction == MINE
    for line, why in (('instruction = "papr"', "instruction must be ours, paper, none"),
                      ('system = "a/b.txt"', "no text file 'a/b.txt'"),
                      ("min_pixels = 9\nmax_pixels = 8", "must not be above max_pixels")):
        toml.write_text(line)
        with pytest.raises((ValueError, FileNotFoundError), match=why):
            load_config(toml)


@pytest.mark.parametrize("kind", ["qwen3", "internvl"])
def test_limits_of_pixels_that_do_nothing_are_refused(checkpoint, kind):
    policy = Policy.from_pretrained(checkpoint(kind), lora_rank=0)
    with pytest.raises(ValueError, match="no limits of pixels to set"):
        policy.set_prompts(max_pixels=784)


@pytest.mark.parametrize("kind", ["qwen3", "qwen3_vl", "qwen2_5_vl", "internvl"])
def test_words_stand_in_the_prompt_of_every_architecture(checkpoint, kind):
    policy = Policy.from_pretrained(checkpoint(kind), lora_rank=0)
    policy.set_prompts(instruction=MINE, system="You teach.")
    ids = policy.prompt(some(kind))["input_ids"][0]
    text = policy.tokenizer.decode(ids)
    assert text.startswith("<|im_start|>system\nYou teach.<|im_end|>")
    assert text.endswith(MINE + "<|im_end|>\n" + BEHIND)
    with torch.no_grad():
        assert policy.prompts([some(kind)])[0]["input_ids"].shape[1] == len(ids)


def test_data_check_counts_what_will_be_asked(tmp_path, capsys):
    picture = tmp_path/"a.png"
    Image.new("RGB", (112, 112), "red").save(picture)
    row = {"question": "How long is x?", "answer": "2", "image": "a.png"}
    (tmp_path/"rows.jsonl").write_text(json.dumps(row) + "\n")
    from calibrl.geometry import tiny_checkpoint as seeing

    def counted(*more):
        assert main(["data", "check", str(tmp_path/"rows.jsonl"), "--model", str(seeing()),
                     *more]) == 0, capsys.readouterr().err
        said = capsys.readouterr().out
        return int(re.search(r"prompts: (\d+) to", said)[1]), said
    usual, said = counted()
    assert "to 16 visual tokens each" in said
    assert counted("--max-pixels", "3136")[0] == usual - 12
    assert counted("--instruction", "none")[0] < usual
    assert counted("--system", "You teach mathematics.")[0] > usual
    assert main(["data", "check", str(tmp_path/"rows.jsonl"), "--instruction", "paper"]) == 2
    assert "name it with model" in capsys.readouterr().err


def test_a_run_leaves_out_what_is_too_long_as_it_will_be_asked(tmp_path, capsys):
    sums(tmp_path/"sums.jsonl", 1)
    train = ["train", "--model", str(tiny_checkpoint()), "--data", str(tmp_path/"sums.jsonl"),
             *ONE_STEP, "--max-prompt-tokens", "30"]
    assert main([*train, "--out", str(tmp_path/"a")]) == 0, capsys.readouterr().err
    long = ["--system", "x "*30]
    assert main([*train, "--out", str(tmp_path/"b"), *long]) == 2
    assert "prompt too long" in capsys.readouterr().err


def test_the_plan_counts_what_a_picture_may_cost(tmp_path, capsys):
    from calibrl.geometry import tiny_checkpoint as seeing
    plan = ["plan", str(seeing()), "--prompt-tokens", "64", "--max-new-tokens", "16"]
    assert main([*plan, "--max-pixels", str(9*784), "--instruction", "ours"]) == 0
    said = capsys.readouterr().out
    assert "64 tokens (9 of image, 1 of instruction and system message)" in said
    assert main([*plan, "--max-pixels", str(65*784)]) == 2
    assert "prompt_tokens (64), not 65" in capsys.readouterr().err


def test_tags_that_are_special_tokens_can_be_written_and_read(checkpoint, tmp_path):
    from transformers import AutoModelForCausalLM, AutoTokenizer
    folder = ending_with(checkpoint("qwen3"), "<think>\n", tmp_path/"model")
    tokenizer = AutoTokenizer.from_pretrained(folder)
    tags = ["<think>", "</think>"]
    tokenizer.add_special_tokens({"additional_special_tokens": tags},
                                 replace_extra_special_tokens=False)
    tokenizer.save_pretrained(folder)
    model = AutoModelForCausalLM.from_pretrained(folder)
    model.resize_token_embeddings(len(tokenizer))
    model.save_pretrained(folder)

    # the thought can end, and its end is read
    policy = Policy.from_pretrained(folder, lora_rank=0)
    ids = tokenizer.convert_tokens_to_ids(["<|im_start|>", *tags])
    assert set(ids) <= set(tokenizer.all_special_ids)
    assert [i in policy.banned for i in ids] == [True, False, False]
    said = "1+1=2</think><answer>2</answer>"
    tokens = policy.tokens("<think>" + said)
    assert ids[2] in tokens and policy.decode(tokens) == said
