"""Sampling in blocks of places, with random numbers that are there before the first token: what a
row writes is its own affair, and it is what the plain loop over a growing cache writes."""
from contextlib import contextmanager

import pytest
import torch

from calibrl import engine
from calibrl import step as step_room
from calibrl.draws import drawer, luck_of
from calibrl.engine import SharedPrompts
from calibrl.geometry import problems
from calibrl.light import light_writer
from calibrl.policy import next_token, read_prompts, write_responses
from calibrl.rollout import Policy


@pytest.fixture(scope="module", params=[4, None], ids=["nf4", "fp32"])
def policy(request, tiny):
    torch.set_num_threads(1)
    return Policy.from_pretrained(tiny, bits=request.param)


PROBLEMS = problems(6, split="test")


def grown_attention(query, key, value, unseen, prompt, slots, n, scale):
    "The attention of one token a row, each with its prompt's keys copied before its own."
    P = prompt[0].shape[2]
    keys, values = [torch.cat([mine[slots//n], own], 2)
                    for mine, own in zip(prompt, (key, value), strict=True)]
    groups = query.shape[1]//key.shape[1]
    keys, values = [x.repeat_interleave(groups, 1) for x in (keys, values)]
    padding = torch.nn.functional.pad(unseen[..., :P], (0, key.shape[2]))
    scores = (query*scale @ keys.mT).masked_fill(padding, -torch.inf)
    return (scores.softmax(-1) @ values).transpose(1, 2)


@torch.no_grad()
def plain_loop(policy, ps, n, choose, luck):
    "Ids and log-probabilities, a list for each row: rows leave when they end, the cache grows."
    from transformers import DynamicCache
    read = read_prompts(policy, ps, None, 1., 8192)
    layers = list(zip(read.keys, read.values, strict=True))
    states, rows = read.hidden.repeat_interleave(n, 0), torch.arange(len(ps)*n)
    start, padding = read.position.movedim(0, -2), ~read.seen
    cache = DynamicCache()
    ids, logps = [[] for _ in rows], [[] for _ in rows]
    for t in range(len(luck)):
        token, logp, _ = next_token(policy, states, luck[t, rows], choose, 1.)
        for row, i, value in zip(rows.tolist(), token.tolist(), logp.tolist(), strict=True):
            ids[row].append(i)
            logps[row].append(value)
        going = torch.tensor([i not in policy.eos_ids for i in token.tolist()]).nonzero()[:, 0]
        if len(going) == 0:
            break
        if t:
            cache.batch_select_indices(going)
        rows = rows[going]
        states = policy.core(input_ids=token[going][:, None], attention_mask=padding[rows//n],
                             shared=SharedPrompts(layers, rows, n), past_key_values=cache,
                             position_ids=start[..., rows//n, :] + t,
                             use_cache=True).last_hidden_state[:, -1]
    return ids, logps


SETTINGS = [dict(), dict(temperature=0.), dict(top_k=5, top_p=.9)]


@pytest.mark.parametrize("settings", SETTINGS, ids=["drawn", "greedy", "top"])
def test_blocks_write_what_a_growing_cache_does(policy, settings, monkeypatch):
    out = policy.sample(PROBLEMS, n=4, seed=7, **settings)
    monkeypatch.setattr(engine, "one_token", grown_attention)
    choose = drawer(**dict(temperature=1.) | settings)
    ids, logps = plain_loop(policy, PROBLEMS, 4, choose, luck_of(7, 24, 64))
    assert out.ids == ids and len(set(map(len, ids))) > 1
    error = [(out.logp[row, :len(said)] - torch.tensor(said)).abs().max()
             for row, said in enumerate(logps)]
    assert float(max(error)) < 5e-5


def test_a_row_writes_the_same_in_any_company(policy):
    "Fewer problems, fewer responses to the last of them, a longer limit."
    whole = policy.sample(PROBLEMS, n=2, seed=3)
    assert policy.sample(PROBLEMS[:1], n=1, seed=3).ids == whole.ids[:1]
    assert policy.sample(PROBLEMS[:3], n=2, seed=3, max_new_tokens=90).ids == whole.ids[:6]
    short = policy.sample(PROBLEMS, n=2, seed=3, max_new_tokens=5)
    assert short.ids == [ids[:5] for ids in whole.ids]


def test_each_row_alone_with_its_own_luck(policy):
    "One row after the other, from the columns of the table of all."
    whole = policy.sample(PROBLEMS[:2], n=3, seed=5)
    luck = luck_of(5, 6, 64)
    alone = []
    for row in range(6):
        with torch.no_grad():
            read = read_prompts(policy, [PROBLEMS[row//3]], None, 1., 8192)
            out = write_responses(policy, read, 1, drawer(1.), luck[:, row:row + 1], 1.)
        alone += out.ids
    assert alone == whole.ids


def test_wider_blocks_change_no_bit(policy, monkeypatch):
    narrow = policy.sample(PROBLEMS, n=4, seed=1)
    monkeypatch.setattr(step_room, "BLOCK", 128)
    wide = policy.sample(PROBLEMS, n=4, seed=1)
    assert wide.ids == narrow.ids and torch.equal(wide.logp, narrow.logp)


@pytest.fixture
def fixed(policy):
    "The policy with rows that keep their places, as on a GPU."
    policy.fixed = True
    yield policy
    policy.fixed = False


@pytest.mark.parametrize("settings", SETTINGS, ids=["drawn", "greedy", "top"])
def test_rows_that_keep_their_places_write_the_same(policy, settings):
    "Who ended is looked at every 16 tokens, and what was written meanwhile is not read."
    free = policy.sample(PROBLEMS, n=4, seed=7, **settings)
    policy.fixed = True
    try:
        told = []
        out = policy.sample(PROBLEMS, n=4, seed=7, tell=told.append, **settings)
    finally:
        policy.fixed = False
    assert out.ids == free.ids and torch.equal(out.mask, free.mask)
    assert float((out.logp - free.logp).abs().max()) < 2e-5
    assert sum(map(len, told)) == sum(map(len, out.ids))


def steps_of(policy, n, limit):
    "A step over the first problems, rows in their places, its first token drawn."
    with torch.no_grad():
        read = read_prompts(policy, PROBLEMS, None, 1., 8192)

    def draw(states, luck):
        return next_token(policy, states, luck, drawer(1.), 1.)

    luck = luck_of(2, n*len(PROBLEMS), limit)
    made = step_room.Step(light_writer(policy), read, n, draw, luck, True)
    with torch.no_grad():
        made.next_token()
    return made


def test_finished_prompts_leave_and_change_no_bit(fixed):
    "A prompt less: what the others write, and its log-probabilities, are the same."
    whole, part = steps_of(fixed, 4, 20), steps_of(fixed, 4, 20)
    going = torch.tensor([row for row in range(24) if row//4 != 2])
    part.keep(going)
    for _ in range(19):
        with torch.no_grad():
            a, b = whole.next_token(), part.next_token()
        assert torch.equal(a[0][going], b[0]) and torch.equal(a[1][going], b[1])
    assert step_room.shapes(part) == (5, 4, *step_room.shapes(whole)[2:]) and part.slots is None


def test_room_for_own_tokens_doubles_up_to_the_limit(fixed):
    made = steps_of(fixed, 1, 150)
    widths = []
    for _ in range(149):
        with torch.no_grad():
            made.next_token()
        widths.append(made.own.width)
    assert [widths.count(width) for width in (32, 64, 128, 160)] == [32, 32, 64, 21]


def test_a_compiled_step_is_the_eager_one_to_the_bit(fixed):
    "Nothing in it breaks a graph: no shape, no branch hangs on data."
    eager, compiled = steps_of(fixed, 2, 8), steps_of(fixed, 2, 8)
    torch._dynamo.reset()
    compiled.feed = torch.compile(lambda: step_room.feed(compiled), fullgraph=True,
                                  backend="eager")
    for _ in range(7):
        with torch.no_grad():
            a, b = eager.next_token(), compiled.next_token()
        assert all(torch.equal(x, y) for x, y in zip(a, b, strict=True))


class FakeGraph:
    "Stands for a CUDA graph: a replay runs the step and writes into the tensors of the capture."
    captured = []

    def replay(self):
        for old, new in zip(self.step.feed.found, step_room.feed(self.step), strict=True):
            old.copy_(new)


@contextmanager
def capturing(graph):
    "Capture as a card does: what the step would change stays as it was."
    step = FakeGraph.step
    changed = [step.column, *(block for pair in step.own.blocks for block in pair)]
    before = [tensor.clone() for tensor in changed]
    yield
    for tensor, old in zip(changed, before, strict=True):
        tensor.copy_(old)
    graph.step = step
    FakeGraph.captured.append(step_room.shapes(step))


def captured(step):
    FakeGraph.step = step
    step.feed = step_room.Captured(step)
    return step


def test_a_captured_step_is_replayed_while_shapes_stay(fixed, monkeypatch):
    "One capture for each set of shapes; what a replay wrote is not overwritten by the next."
    monkeypatch.setattr(torch.cuda, "CUDAGraph", FakeGraph)
    monkeypatch.setattr(torch.cuda, "graph", capturing)
    monkeypatch.setattr(FakeGraph, "captured", [])
    eager, replayed = steps_of(fixed, 2, 40), captured(steps_of(fixed, 2, 40))
    going = torch.tensor([0, 1, 4, 5, 8, 9])
    seen = [[], []]
    for t in range(39):
        for step, found in zip((eager, replayed), seen, strict=True):
            if t == 16:
                step.keep(going)
            with torch.no_grad():
                found.append(step.next_token())
    for a, b in zip(*seen, strict=True):
        assert all(torch.equal(x, y) for x, y in zip(a, b, strict=True))
    P = step_room.shapes(replayed)[2]
    assert FakeGraph.captured == [(6, 2, P, 32), (3, 2, P, 32), (3, 2, P, 64)]


def test_a_step_that_cannot_be_captured_runs_as_it_is(fixed, monkeypatch, capsys):
    def refuses(graph):
        raise RuntimeError("operation not permitted when stream is capturing\nmore lines")

    monkeypatch.setattr(torch.cuda, "CUDAGraph", FakeGraph)
    monkeypatch.setattr(torch.cuda, "graph", refuses)
    eager, replayed = steps_of(fixed, 1, 6), captured(steps_of(fixed, 1, 6))
    for _ in range(5):
        with torch.no_grad():
            assert torch.equal(eager.next_token()[1], replayed.next_token()[1])
    said = capsys.readouterr().err.strip().splitlines()
    assert len(said) == 1 and "cannot be captured (operation not permitted" in said[0]
