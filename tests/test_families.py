"""Models of many families: packed rows where they are right, rows of their own where not.

Each is tiny and random; what a run of it says is held against the model's own forward pass."""
import pytest
import torch
import transformers
from families import OLD, VISION, family
from packaging.version import Version
from PIL import Image

from calibrl import engine, selfcheck
from calibrl.masks import unshared
from calibrl.policy import Policy
from calibrl.rollout import rollout
from calibrl.tasks import Problem
from calibrl.train import Config, micro_batches, train_step

EXPERT = "<think>1+1=2</think><answer>2</answer>"

# One family of each kind of difficulty
KINDS = ["llama", "mistral", "granite", "phi3", "smolvlm", "gemma3", "llava_onevision", "qwen3_5",
         "mllama", "lfm2_vl", "gpt_oss"]

# Among them, those with layers that carry a state
STATES = ["qwen3_5", "qwen3_5_moe", "lfm2_vl"]

# Why some are not packed: their logits are capped
PLAIN = ["gemma2"]


@pytest.fixture(scope="session")
def folder(tmp_path_factory):
    "folder(name): a tiny checkpoint of a family, made once."
    made = {}

    def of(name):
        if name in STATES and Version(transformers.__version__) < Version("5.20.2"):
            pytest.skip(f"{name} has layers with a state: packed from transformers 5.20.2 on")
        if name not in made:
            made[name] = family(name, tmp_path_factory.mktemp("family"))
        return made[name]
    return of


def some(policy):
    "Two problems of unequal length with an expert, with a picture each where the model sees."
    sees = hasattr(policy.processor, "image_processor")
    made = []
    for question, colour in (("1 + 1 = ?", "red"), ("How long is x, roughly?", "blue")):
        pictures = (Image.new("RGB", (56, 56), colour),) if sees else ()
        made.append(Problem(question, "2", pictures, expert=EXPERT))
    return made


def trained(policy, by=.05):
    "The policy with an adapter that does something."
    generator = torch.Generator().manual_seed(1)
    for weight in policy.trainable:
        weight.data += by*torch.randn(weight.shape, generator=generator)
    return policy


def own(policy, problem, response):
    "What the model itself says of a response, its own attention, its own head."
    with torch.no_grad():
        policy.model.eval()
        engine.attend_by(policy.decoder, policy.own_attention)
        return selfcheck.own_logps(policy, problem, response)


def gap(policy, problems, responses, logp):
    "By how much log-probabilities (rows, T) differ from the model's own, at most."
    each = len(responses)//len(problems)
    apart = []
    for i, (row, response) in enumerate(zip(logp.detach(), responses, strict=True)):
        said = own(policy, problems[i//each], response)
        apart.append(float((row[:len(said)] - said).abs().max()))
    return max(apart)


@pytest.mark.parametrize("name", KINDS + PLAIN)
def test_a_family_samples_scores_and_takes_a_step(folder, name):
    policy = trained(Policy.from_pretrained(folder(name), lora_rank=4))
    assert policy.rows == ("plain" if name in PLAIN else "packed")

    # Found by trying, and told by the configuration alone
    told = unshared(type(policy.base), policy.base.config)
    assert policy.shared == (policy.rows == "packed" and not told)
    problems = some(policy)
    ro = rollout(policy, problems, n=3, max_new_tokens=30, seed=1)
    assert gap(policy, problems, ro.responses, ro.old_logp) < 1e-4
    scores = policy.logps(problems, ro.grouped)
    assert gap(policy, problems, ro.responses, scores.logp) < 1e-4
    assert float((scores.entropy - ro.entropy[:, :scores.entropy.shape[1]]).abs().max()) < 1e-4
    experts = [policy.tokens(EXPERT)]*2
    assert gap(policy, problems, experts, ro.expert_logp[::3]) < 1e-4

    # A random model solves nothing, so the verdicts are given
    ro.rewards = torch.tensor([1.1, 0, .1]*2)
    ro.correct = torch.tensor([True, False, False]*2)
    cfg = Config(prompts=2, responses=3, mini_batches=1, max_new_tokens=30, lr=1e-2)
    before = [weight.detach().clone() for weight in policy.trainable]
    metrics = train_step(policy, torch.optim.AdamW(policy.trainable, lr=cfg.lr), ro, cfg)
    assert metrics["first_ratio_error"] < 1e-4 and metrics["grad_norm"] > 0
    moved = [not torch.equal(a, b) for a, b in zip(before, policy.trainable, strict=True)]
    assert all(moved)


def of_all_shapes():
    "Two pictures, none, a wide one and a square one: no two of them alike."
    red, blue = (Image.new("RGB", (56, 56), colour) for colour in ("red", "blue"))
    wide = Image.new("RGB", (112, 56), "green")
    asked = {"What are they?": (red, blue), "How long is x, roughly?": (), "1 + 1 = ?": (wide,),
             "Which?": (red,)}
    return [Problem(question, "2", images, expert=EXPERT) for question, images in asked.items()]


# Which of those that see say something else of text where it stands beside pictures
APART = ["mllama"]


def test_a_family_that_reads_no_problem_without_a_picture_says_so(folder):
    policy = Policy.from_pretrained(folder("paligemma"))
    with pytest.raises(ValueError, match="'bare': the model's processor makes no prompt of it"):
        policy.sample([Problem("1 + 1 = ?", "2", id="bare")], max_new_tokens=2)


@pytest.mark.parametrize("name", sorted({*VISION, *OLD} - {"paligemma"}))
def test_problems_with_other_pictures_and_with_none_go_together(folder, name):
    policy = trained(Policy.from_pretrained(folder(name), lora_rank=4))
    assert policy.rows == "packed" and policy.mixes == (name not in APART)
    problems = of_all_shapes()
    groups = [[policy.tokens("<think>")], [policy.tokens(EXPERT), policy.tokens("2")]]*2
    with torch.no_grad():
        logp = policy.logps(problems, groups).logp
        flat = [problem for problem, group in zip(problems, groups, strict=True) for _ in group]
        assert gap(policy, flat, sum(groups, []), logp) < 1e-4
        out = policy.sample(problems, n=2, max_new_tokens=6, experts=[None, EXPERT]*2)
    assert gap(policy, problems, out.ids, out.logp) < 1e-4
    assert gap(policy, problems[1::2], [policy.tokens(EXPERT)]*2, out.expert_logp[1::2]) < 1e-4


@pytest.mark.parametrize("name", ["mllama", "smolvlm"])
def test_a_step_over_problems_that_need_passes_of_their_own(folder, name):
    "The gradient is that of plain rows, where each response has a pass to itself."
    policies = [trained(Policy.from_pretrained(folder(name), lora_rank=4, rows=rows))
                for rows in ("packed", "plain")]
    problems = of_all_shapes()
    assert 1 < len(policies[0].passes(problems)) <= len(problems)
    packed, plain = (gradient(policy, problems) for policy in policies)
    assert float((packed - plain).norm()/plain.norm()) < 1e-4


def blind_to_the_end(seen, R, T, right=engine.packed_masks):
    "Masks under which responses do not see their prompt's last token."
    seen = seen.clone()
    seen[:, -1] = 0
    return right(seen, R, T)


def through_each_other(seen, R, T, right=engine.packed_masks):
    "Masks under which a response sees nothing of its prompt."
    return right(seen*0, R, T)


@pytest.fixture
def fresh(monkeypatch):
    "No verdict is remembered, nor this test's later."
    monkeypatch.setattr(selfcheck, "VERDICTS", {})


@pytest.mark.parametrize("wrong", [blind_to_the_end, through_each_other])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_wrong_packing_is_caught_at_load(folder, fresh, monkeypatch, capsys, wrong, dtype):
    monkeypatch.setattr(engine, "packed_masks", wrong)
    policy = Policy.from_pretrained(folder("llama"), dtype=dtype)
    assert policy.rows == "plain"
    line, = told(capsys)
    assert "calibrl: llama: each response in a row of its own: packed rows are" in line
    assert "nats off the model's own forward pass, where rounding explains" in line
    with pytest.raises(ValueError, match="rows='packed' is not possible: packed rows are"):
        Policy.from_pretrained(folder("llama"), dtype=dtype, rows="packed")


def test_a_response_that_runs_into_the_next_is_caught(folder, fresh, monkeypatch):
    "The first response is right, so only the second can tell."
    def leaking(x, P, R):
        own = right(x, P, R)
        own[1::2, :, :P] = own[1::2, :, :P] + .5*own[::2, :, -1:]
        return own

    right = engine.with_prompt
    monkeypatch.setattr(engine, "with_prompt", leaking)
    assert Policy.from_pretrained(folder("llama")).rows == "plain"


def test_a_window_that_does_not_bite_in_a_short_row_is_seen(folder, fresh):
    policy = Policy.from_pretrained(folder("mistral"))
    config = policy.base.config
    config.sliding_window = 4096
    policy.causal = True                # packed as if there were none
    assert selfcheck.examine(policy).rows == "plain"
    assert config.sliding_window == 4096


def test_an_error_in_packed_rows_is_no_error_of_the_run(folder, fresh, monkeypatch, capsys):
    def broken(*given):
        raise IndexError("no such layer\nand more")

    monkeypatch.setattr(engine, "packed_masks", broken)
    assert Policy.from_pretrained(folder("llama")).rows == "plain"
    assert "packed rows fail (IndexError: no such layer)" in capsys.readouterr().err


@pytest.fixture
def tries(fresh, monkeypatch, tmp_path):
    "tries(...): loads as a new process would, and returns how often a model was tried so far."
    monkeypatch.setenv("CALIBRL_VERDICTS", str(tmp_path))
    right = selfcheck.examine
    count = []

    def examine(*given):
        count.append(given)
        return right(*given)

    def load(path, **options):
        selfcheck.VERDICTS.clear()
        return Policy.from_pretrained(path, **options), len(count)

    monkeypatch.setattr(selfcheck, "examine", examine)
    return load


def test_a_verdict_is_kept_for_the_next_process(folder, tries, tmp_path, monkeypatch):
    first, count = tries(folder("llama"))
    file, = tmp_path.iterdir()
    whole = file.read_text()
    again, count = tries(folder("llama"))
    assert count == 1 and again.verdict == first.verdict and again.rows == "packed"

    # Damaged, it is found and written anew; another precision has a verdict of its own
    file.write_text(whole.replace('"packed"', '"best"'))
    assert tries(folder("llama"))[1] == 2 and file.read_text() == whole
    assert tries(folder("llama"), dtype=torch.bfloat16)[1] == 3
    assert len(list(tmp_path.iterdir())) == 2
    monkeypatch.setenv("CALIBRL_VERDICTS", "off")
    assert tries(folder("llama"))[1] == 4


def test_what_follows_from_an_error_is_not_kept(folder, tries, tmp_path, monkeypatch):
    def no_memory(*given):
        raise torch.OutOfMemoryError("for a moment")

    with monkeypatch.context() as crowded:
        crowded.setattr(engine, "packed_masks", no_memory)
        assert tries(folder("llama"))[0].rows == "plain"
    assert list(tmp_path.iterdir()) == []
    assert tries(folder("llama"))[0].rows == "packed"


def test_a_sampler_that_is_wrong_is_not_used(folder, fresh, monkeypatch):
    def one_token(*given):
        return .9*right(*given)

    right = engine.one_token
    monkeypatch.setattr(engine, "one_token", one_token)
    policy = Policy.from_pretrained(folder("llama"))
    assert policy.rows == "packed" and not policy.shared
    problems = some(policy)
    out = policy.sample(problems, n=2, max_new_tokens=8)
    assert gap(policy, problems, out.ids, out.logp) < 1e-4


def test_a_model_that_disagrees_with_itself_is_refused(folder, fresh, monkeypatch):
    def restless(self, *given, **named):
        out = right(self, *given, **named)
        return out + torch.randn(out.shape)

    norm = type(Policy.from_pretrained(folder("llama")).decoder.norm)
    right = norm.forward
    selfcheck.VERDICTS.clear()
    monkeypatch.setattr(norm, "forward", restless)
    with pytest.raises(ValueError, match="a llama model cannot be scored"):
        Policy.from_pretrained(folder("llama"))


def gradient(policy, problems=None):
    "Of a weighted sum of log-probabilities, by all that is trained."
    problems = problems or some(policy)
    groups = [[EXPERT, "<think>"], [EXPERT + "1", "2"]]*(len(problems)//2)
    logp = policy.logps(problems, groups).logp
    loss = (logp*torch.linspace(-1, 1, logp.numel()).view_as(logp)).sum()
    parts = torch.autograd.grad(loss, policy.trainable)
    return torch.cat([part.flatten() for part in parts])


@pytest.mark.parametrize("name", KINDS)
@pytest.mark.parametrize("recomputed", [False, True])
def test_both_ways_have_the_same_gradient(folder, name, recomputed):
    packed, plain = (gradient(trained(Policy.from_pretrained(
        folder(name), lora_rank=4, rows=rows, gradient_checkpointing=recomputed)))
        for rows in ("packed", "plain"))
    assert float((packed - plain).norm()/plain.norm()) < 1e-4


def test_the_same_seed_gives_the_same_responses_both_ways(folder):
    packed, plain = (Policy.from_pretrained(folder("llama"), rows=rows)
                     for rows in ("packed", "plain"))
    drawn = [policy.sample(some(policy), n=3, seed=5, max_new_tokens=20)
             for policy in (packed, plain)]
    assert drawn[0].ids == drawn[1].ids
    assert torch.allclose(drawn[0].logp, drawn[1].logp, atol=1e-4)


def told(capsys):
    "What calibrl said, loading bars apart."
    return [line for line in capsys.readouterr().err.splitlines() if line.startswith("calibrl:")]


def test_a_family_that_no_test_covers_is_told(folder, fresh, capsys):
    Policy.from_pretrained(folder("qwen2"))
    assert told(capsys) == []
    Policy.from_pretrained(folder("smollm3"))
    line, = told(capsys)
    assert "smollm3 is not among the model types that tests cover (qwen2_5_vl" in line
    assert "tried at load: packed rows are" in line


def test_a_plain_row_counts_its_own_prompt(folder):
    "Two groups of two: 2 (P + 2 T) tokens packed, 2 (2 P + 2 T) plain."
    policy = Policy.from_pretrained(folder("llama"))
    ro = rollout(policy, some(policy)[:1]*2, n=2, max_new_tokens=5, seed=3)
    P, T = ro.prompt_tokens[0], max(map(len, ro.responses))
    assert micro_batches(ro, [0, 1], 2*(P + 2*T)) == [[0, 1]]
    assert micro_batches(ro, [0, 1], 2*(P + 2*T), "plain") == [[0], [1]]
    assert micro_batches(ro, [0, 1], 4*(P + T), "plain") == [[0, 1]]


def test_the_plan_counts_a_prompt_for_each_plain_row(folder, capsys):
    from calibrl.plan import plan
    step = dict(prompts=2, responses=4, prompt_tokens=50, max_new_tokens=20)
    packed, plain = (plan(str(folder("llama")), rows=rows, **step) for rows in ("auto", "plain"))
    assert plain["sampling"]["prompts"] == 4*packed["sampling"]["prompts"]
    assert (packed["group_tokens"], plain["group_tokens"]) == (50 + 4*20, 50 + 20)
    with pytest.raises(ValueError, match="rows must be auto, packed or plain, not 'best'"):
        plan(str(folder("llama")), rows="best")


@pytest.mark.parametrize("rows", ["packed", "plain"])
@pytest.mark.parametrize("name", ["llama", "granite", "qwen3_5", "gemma2"])
def test_half_precision_on_every_path(folder, name, rows):
    "No log-probability above 0; sampler and scorer agree; both are near what 64 bits say."
    if name == "gemma2" and rows == "packed":
        rows = "auto"
    policy = trained(Policy.from_pretrained(folder(name), lora_rank=4, rows=rows,
                                            dtype=torch.bfloat16), .02)
    ro = rollout(policy, some(policy), n=4, max_new_tokens=30, seed=1)
    with torch.no_grad():
        scores = policy.logps(ro.problems, ro.grouped)
    T = scores.logp.shape[1]
    sampled, scored = ro.old_logp[:, :T][scores.mask], scores.logp[scores.mask]
    assert float(sampled.max()) <= 0 and float(scored.max()) <= 0
    exact = trained(Policy.from_pretrained(folder(name), lora_rank=4, rows=rows,
                                           dtype=torch.float64), .02)
    with torch.no_grad():
        want = exact.logps(ro.problems, ro.grouped).logp[scores.mask]
    floor = float((want - scored).abs().mean())
    assert floor < .05
    assert float((scored - sampled).expm1().abs().mean()) < 2*floor
