"""Drafts from multi-token heads: for every rule what its other drafters send, from the law that is reported."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch
from torch import Tensor

from specserve.draft.heads.drafting import HeadsDrafting
from specserve.draft.heads.loss import heads_loss
from specserve.draft.heads.model import Heads, Shape, load_heads
from specserve.draft.heads.worker import HeadsDrafter
from specserve.engine.ahead import Wish, packed
from specserve.errors import ConfigError
from specserve.types import Close, Draft, Features, Propose, Reply, Sampling, SessionLost, SessionSpec
from specserve.verify import RULES, Prefix, check_draft, draw_sparse, sample

VOCAB, WIDTH, N = 24, 8, 5
PROMPT = (3, 9, 1, 20, 6)


@pytest.fixture(autouse=True)
def _one_thread() -> Iterator[None]:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def made(rank: int = 3, ids: Tensor | None = None, low_rank: int | None = 2) -> tuple[Heads, Tensor, Tensor]:
    """Random heads, an unembedding, a hidden state."""
    with torch.random.fork_rng():
        torch.manual_seed(rank)
        shape = Shape(WIDTH, VOCAB, N, rank, low_rank, None if ids is None else len(ids))
        heads = Heads(shape, ids).requires_grad_(False)
        for weight in heads.parameters():
            weight.copy_(0.7 * torch.randn_like(weight))
        return heads, torch.randn(VOCAB, WIDTH), torch.randn(1, WIDTH)


def spec(rule: str, branches: int = 0, nodes: int = 0, **sampling: object) -> SessionSpec:
    return SessionSpec(Sampling(**sampling), len(PROMPT), 60, rule, branches, nodes)  # type: ignore[arg-type]


def law(heads: Heads, unembedding: Tensor, hidden: Tensor, y: int, path: tuple[int, ...]) -> Tensor:
    """Slow oracle: log q after y and a path, [1, V], from whole factors."""
    rows = unembedding[heads.ids]
    log_p = (heads.states(hidden)[:, :, 0] @ rows.T).log_softmax(-1)  # [n, r, m]
    log_b = heads.weights(hidden)[0]
    for s, token in enumerate((y, *path)):
        at = (heads.ids == token).nonzero()
        if len(at):
            log_b = log_b + log_p[s, :, int(at)]
    q = (log_b.log_softmax(-1)[:, None] + log_p[1 + len(path)]).logsumexp(0)
    return torch.full((1, VOCAB), -torch.inf).index_copy_(1, heads.ids, q[None])


@pytest.mark.parametrize("rule", RULES)
@pytest.mark.parametrize("sampling", [{}, {"temperature": 0.7, "top_k": 6, "repetition_penalty": 1.3}])
def test_every_drawn_token_carries_the_law_after_its_path(rule, sampling):
    heads, unembedding, hidden = made()
    mine = spec(rule, 3, 20, **{"temperature": 1.0, "seed": 4, **sampling})
    [draft] = HeadsDrafting(heads, unembedding).draft([Wish(1, mine, PROMPT, 4)], hidden)
    assert max(draft.depths()) >= 3
    assert draft.drafters == ("heads",) * len(draft)
    check_draft(mine, draft)
    if rule in ("coupled", "trie"):
        assert draft.laws is None
        return
    assert draft.laws is not None
    for node, got in enumerate(draft.laws):
        path = tuple(draft.tokens[i] for i in draft.path(node)[:-1])
        logits = law(heads, unembedding, hidden, PROMPT[-1], path)
        want = draw_sparse(logits, [mine], [Prefix(PROMPT, path)], [(1, 0)])[1][0]
        assert dict(zip(got.ids, got.probs, strict=True)) == pytest.approx(
            dict(zip(want.ids, want.probs, strict=True)), rel=1e-4
        )


@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_a_coupled_chain_is_what_the_target_would_write_were_its_law_the_heads(temperature):
    heads, unembedding, hidden = made()
    mine = spec("coupled", 1, temperature=temperature, seed=8)
    [draft] = HeadsDrafting(heads, unembedding).draft([Wish(1, mine, PROMPT, 4)], hidden)
    path: tuple[int, ...] = ()
    for token in draft.tokens:
        logits = law(heads, unembedding, hidden, PROMPT[-1], path)
        assert token == int(sample(logits, [mine], [Prefix(PROMPT, path)])[0])
        path += (token,)
    assert len(path) == 4


def test_ids_outside_the_reduced_vocabulary_are_never_drafted_and_say_nothing_when_emitted():
    ids = torch.tensor([0, 2, 5, 7, 11, 20])
    heads, unembedding, hidden = made(ids=ids)
    drafting = HeadsDrafting(heads, unembedding)
    mine = spec("kseq", 4, 16, temperature=1.0, seed=2)
    [draft] = drafting.draft([Wish(1, mine, (1, 2, 3), 4)], hidden)
    assert set(draft.tokens) <= set(ids.tolist())
    assert draft.laws is not None
    want = law(heads, unembedding, hidden, 3, ()).softmax(-1)[0]
    assert draft.laws[0].probs == pytest.approx([float(want[i]) for i in draft.laws[0].ids], rel=1e-4)


def test_a_batch_drafts_what_its_sessions_draft_alone():
    heads, unembedding, _ = made()
    hidden = torch.randn(4, WIDTH, generator=torch.Generator().manual_seed(1))
    wishes = [
        Wish(i, spec(rule, 2, 12, temperature=1.0, seed=i), (*PROMPT, i), 3)
        for i, rule in enumerate(["kseq", "coupled", "recursive-wor", "kseq"])
    ]
    together = HeadsDrafting(heads, unembedding).draft(wishes, hidden)
    alone = [HeadsDrafting(heads, unembedding).draft([w], h[None])[0] for w, h in zip(wishes, hidden, strict=True)]
    assert [draft.tokens for draft in together] == [draft.tokens for draft in alone]


def test_fewer_tokens_are_a_marginal_of_the_whole():
    heads, unembedding, hidden = made()
    wish = [Wish(1, spec("rejection", temperature=1.0), PROMPT, 2)]
    short, long = (HeadsDrafting(heads, unembedding, max_tokens=n).draft(wish, hidden) for n in (2, 4))
    assert short == long


@pytest.mark.parametrize("low_rank", [None, 3])
def test_saved_heads_are_loaded_as_they_were(low_rank, tmp_path):
    heads, unembedding, hidden = made(ids=torch.tensor([1, 4, 9]), low_rank=low_rank)
    heads.save(tmp_path)
    loaded = load_heads(tmp_path)
    assert loaded.shape == heads.shape
    torch.testing.assert_close(loaded.states(hidden), heads.states(hidden), rtol=2e-2, atol=5e-2)
    with pytest.raises(ConfigError, match=r"unembedding of \[24, 8\]; got \[23, 8\]"):
        HeadsDrafting(loaded, unembedding[1:])
    with pytest.raises(ConfigError, match="between 1 and 4, the heads' n - 1; got 5"):
        HeadsDrafting(loaded, unembedding, max_tokens=5)


def test_the_bounded_loss_and_its_gradient_are_those_of_the_whole_factors():
    heads, unembedding, _ = made(rank=2)
    hidden = torch.randn(6, WIDTH, generator=torch.Generator().manual_seed(3))
    tokens = torch.randint(-1, VOCAB, (6, N), generator=torch.Generator().manual_seed(4))
    heads.requires_grad_(True)

    def plain() -> Tensor:
        log_p = (heads.states(hidden) @ unembedding.T).log_softmax(-1)  # [n, r, N, V]
        x = tokens.clamp(min=0).T[:, None, :, None].expand(-1, 2, -1, 1)
        seen = log_p.gather(3, x)[..., 0] * (tokens >= 0).T[:, None]
        log_w = heads.weights(hidden)
        return -(log_w + seen.sum(0).T).logsumexp(-1).mean() / N + 0.02 * log_w.exp().mean(0).square().sum()

    gradients = []
    for loss in (plain(), heads_loss(heads, hidden, unembedding, tokens, 0.01)):
        heads.zero_grad()
        loss.backward()
        gradients.append([loss.detach(), *(p.grad for p in heads.parameters())])
    torch.testing.assert_close(gradients[0], gradients[1], rtol=1e-4, atol=1e-6)


# --- the pool ---


def pool() -> tuple[HeadsDrafter, Features]:
    heads, unembedding, hidden = made()
    return HeadsDrafter(HeadsDrafting(heads, unembedding), VOCAB, WIDTH), Features(3, (-1,), packed(hidden))


def ask(drafter: HeadsDrafter, *commands: Propose) -> list[Reply]:
    replies = [reply for command in commands for reply in drafter.submit(command)]
    while drafter.busy:
        replies += drafter.step()
    return replies


def test_a_pool_drafts_from_the_state_that_came_with_the_call():
    drafter, features = pool()
    mine = spec("coupled", 2, 8)
    [taken] = ask(drafter, Propose(1, 0, PROMPT[:4], 0, mine))
    [proposal] = ask(drafter, Propose(1, 4, PROMPT[4:], 4, features=features))
    heads, unembedding, hidden = made()
    [want] = HeadsDrafting(heads, unembedding).draft([Wish(1, mine, PROMPT, 4)], hidden.bfloat16().float())
    assert (taken.at, taken.draft) == (4, Draft())
    assert (proposal.at, proposal.draft) == (5, want)
    drafter.submit(Close(1))
    assert drafter.stats()["sessions"] == 0


def test_a_state_of_another_token_or_none_at_all_brings_an_empty_draft():
    drafter, features = pool()
    mine = spec("coupled")
    for wrong in (None, Features(2, (-1,), features.data), Features(3, (4,), features.data)):
        [proposal] = ask(drafter, Propose(1, 0, PROMPT, 4, mine, features=wrong))
        assert proposal.draft == Draft()
    [failed] = ask(drafter, Propose(1, 0, PROMPT, 4, mine, features=Features(3, (-1,), b"123")))
    assert failed.message.startswith("features.data must hold rows of 8 bfloat16 numbers; got '3 bytes'")
    assert ask(drafter, Propose(1, 5, (), 4, features=features)) == [SessionLost(1, 0)]
