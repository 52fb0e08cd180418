"""Sampling in blocks of places, with random numbers that are there before the first token: what a
row writes is its own affair, and it is what the plain loop over a growing cache writes."""
import pytest
import torch

from calibrl import engine
from calibrl.draws import drawer, luck_of
from calibrl.engine import SharedPrompts
from calibrl.geometry import problems
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
    from calibrl import step
    narrow = policy.sample(PROBLEMS, n=4, seed=1)
    monkeypatch.setattr(step, "BLOCK", 128)
    wide = policy.sample(PROBLEMS, n=4, seed=1)
    assert wide.ids == narrow.ids and torch.equal(wide.logp, narrow.logp)
