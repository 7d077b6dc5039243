"""The rules that toss coins, from logits to tokens: refusals, precision, batches. Their laws are in tests/laws."""

import math

import numpy as np
import pytest
import torch

from specserve.errors import VerifyError
from specserve.types import Draft, Sampling, SessionSpec, SparseLaw
from specserve.verify import RULES, Case, Prefix, check_draft, decide, draw_sparse, merge_chains, process, tossed
from specserve.verify.law import Emission, Fork
from specserve.verify.several import least_rho
from specserve.verify.tossed import Laws, Tossed

V = 300
TOSSED = [name for name, rule in RULES.items() if isinstance(rule, Tossed)]


def spec(rule: str, seed: int = 0, **parameters: object) -> SessionSpec:
    return SessionSpec(Sampling(seed=seed, **{"temperature": 1.0, **parameters}), 1, 99, rule)  # type: ignore[arg-type]


def logits_after(prefix: tuple[int, ...], salt: int) -> torch.Tensor:
    generator = torch.Generator().manual_seed(hash((prefix, salt)) % 2**31)
    base = torch.randn(V, generator=torch.Generator().manual_seed(hash(prefix) % 2**31)) * 2.5
    return base + torch.randn(V, generator=generator) * 0.7


def drafted(spec_: SessionSpec, k: int, length: int) -> Draft:
    """K chains from a drafter near the target; siblings without replacement for the rules that want them."""
    if spec_.rule.endswith("wor"):
        (tokens,), (law,) = draw_sparse(logits_after((), 1)[None], [spec_], [[7]], [(1, 0)], drafter="q", count=k)
        return Draft(tokens, (-1,) * len(tokens), ("q",) * len(tokens), (law,) * len(tokens))
    chains, laws = [], []
    for number in range(1 if spec_.rule in ("rejection", "block") else k):
        chain: tuple[int, ...] = ()
        its: list[SparseLaw] = []
        for depth in range(length):
            history, draw = Prefix([7], chain), (1, number * length + depth)
            (tokens,), (law,) = draw_sparse(logits_after(chain, 1)[None], [spec_], [history], [draw], drafter="q")
            chain += tokens
            its.append(law)
        chains.append(chain)
        laws.append(its)
    return merge_chains(chains, laws, "q")


def case_of(rule: str, seed: int, **parameters: object) -> tuple[Case, torch.Tensor]:
    spec_ = spec(rule, seed, **parameters)
    case = Case(spec_, [7], drafted(spec_, 3, 3))
    return case, torch.stack([logits_after(p.drafted, 0) for p in case.prefixes()])


@pytest.mark.parametrize("rule", TOSSED)
@pytest.mark.parametrize("parameters", [{}, {"temperature": 0.7, "top_p": 0.9}, {"presence_penalty": 1.0, "top_k": 40}])
def test_fp32_decides_as_fp64_does(rule, parameters):
    """Same coins, same noise: the precision of the target's laws changes no verdict here; nor does batching."""
    cases, rows = zip(*(case_of(rule, seed, **parameters) for seed in range(15)), strict=True)
    batch = decide(torch.cat(rows), cases)
    assert batch == decide(torch.cat(rows).double(), cases)
    assert batch == [decide(r, [c])[0] for r, c in zip(rows, cases, strict=True)]
    assert len({len(o.accepted) for o in batch}) > 1


@pytest.mark.parametrize("rule", TOSSED)
def test_the_emitted_law_on_few_ids_is_the_one_of_the_whole_vocabulary(rule):
    """The slow oracle: the last residual worked out on all of V, in fp64, for a single draft of one position."""
    emission = Emission((0,))
    for seed in range(50):  # until the coin matters
        spec_ = spec(rule, seed)
        draft = drafted(spec_, 1, 1)
        case = Case(spec_, [7], draft)
        logits = torch.stack([logits_after(p.drafted, 0) for p in case.prefixes()]).double()
        laws = Laws(RULES[rule], logits, [case], [0])
        emission = RULES[rule].rule(laws.trees[0], lambda probability: probability >= 1)
        if not emission.path:
            break
    assert emission.path == ()
    got = laws.emissions([(0, emission)])[0]
    p = process(logits[:1], [spec_], [[7]]).softmax(-1)[0]
    q = torch.zeros(V, dtype=torch.float64)
    q[list(draft.laws[0].ids)] = torch.tensor(draft.laws[0].probs, dtype=torch.float64)
    want = (p - q / q.sum()).clamp(min=0)
    torch.testing.assert_close(got / got.sum(), want / want.sum(), rtol=1e-9, atol=1e-12)


def test_a_batch_of_every_rule_is_judged_case_by_case():
    cases, rows = zip(*(case_of(rule, 5, temperature=t) for rule in RULES for t in (0.0, 1.0)), strict=True)
    mixed = decide(torch.cat(rows), cases)
    assert mixed == [decide(r, [c])[0] for r, c in zip(rows, cases, strict=True)]


@pytest.mark.parametrize("rule", TOSSED)
def test_many_rows_are_turned_into_laws_piece_by_piece(rule, monkeypatch):
    cases, rows = zip(*(case_of(rule, seed) for seed in range(6)), strict=True)
    whole = decide(torch.cat(rows), cases)
    monkeypatch.setattr(tossed, "_CACHED", 1)
    assert decide(torch.cat(rows), cases) == whole


@pytest.mark.parametrize("rule", TOSSED)
@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_bad_logits_fail_their_own_case_only(rule, bad):
    cases, rows = zip(*(case_of(rule, seed) for seed in range(3)), strict=True)
    want = decide(torch.cat(rows), cases)
    spoilt = [r.clone() for r in rows]
    spoilt[1][0, 11] = bad
    got = decide(torch.cat(spoilt), cases)
    assert [got[0], got[2]] == [want[0], want[2]]
    assert got[1].fault == "logits at position 1 are not finite"


def test_logprobs_come_with_every_rule():
    for rule in TOSSED:
        case, rows = case_of(rule, 2, logprobs=2)
        outcome = decide(rows, [case])[0]
        emitted = [case.draft.tokens[i] for i in outcome.accepted] + [outcome.token]
        assert len(outcome.logprobs) == len(emitted)
        for row, token, found in zip((-1, *outcome.accepted), emitted, outcome.logprobs, strict=True):
            assert found.logprob == pytest.approx(float(rows[row + 1].log_softmax(-1)[token]), abs=1e-5)


@pytest.mark.parametrize("rule", TOSSED)
def test_a_draft_without_laws_is_refused_and_greedy_needs_none(rule):
    draft = Draft.chain((1, 2), "ngram")
    with pytest.raises(VerifyError, match=r"'ngram' sent none; use a drafter that reports its laws, or rule"):
        check_draft(spec(rule), draft)
    with pytest.raises(VerifyError, match="sent none"):
        decide(torch.zeros(3, V), [Case(spec(rule), [7], draft)])
    check_draft(spec(rule, temperature=0.0), draft)
    check_draft(spec(rule), Draft())


HALF = SparseLaw((1, 2), (0.5, 0.5))
OTHER = SparseLaw((1, 2), (0.25, 0.75))


@pytest.mark.parametrize(
    ("rule", "draft", "message"),
    [
        ("rejection", Draft((1, 2), (-1, -1), ("a", "a"), (HALF, HALF)), "takes one chain and got 2"),
        ("block", Draft((1, 2), (-1, -1), ("a", "a"), (HALF, HALF)), "takes one chain and got 2"),
        ("block", Draft((3,), (-1,), ("a",), (HALF,)), "token 3 has probability 0"),
        ("kseq", Draft((1, 2), (-1, -1), ("a", "b"), (HALF, HALF)), r"got drafters \['a', 'b'\]; use one drafter"),
        ("kseq", Draft((1, 2), (-1, -1), ("a", "a"), (HALF, OTHER)), "drawn from different laws"),
        ("kseq", Draft((1, 2), (-1, -1), ("a", "a"), (HALF, HALF)), r"needs `Draft\.chains`"),
        ("recursive", Draft((1, 2), (-1, -1), ("a", "b"), (HALF, OTHER)), r"needs `Draft\.chains`"),
        (
            "traversal",
            Draft((1,), (-1,), ("a",), (HALF,), ((0, 1), (0,))),
            "does not follow the draft's tree of 1 nodes",
        ),
        ("traversal", Draft((1, 2), (-1, 0), ("a", "a"), (HALF, HALF), ((0,),)), "chains cover 1 of the draft's 2"),
        ("recursive-wor", Draft((1, 1), (-1, -1), ("a", "a"), (HALF, HALF)), "got equal ones"),
        ("traversal-wor", Draft((1,), (-1,), ("a",), (HALF,), ((0,), (0,))), "got equal ones"),
    ],
)
def test_a_draft_that_a_rule_would_not_be_exact_for_is_refused(rule, draft, message):
    with pytest.raises(VerifyError, match=message):
        check_draft(spec(rule), draft)


def test_rho_solves_its_equation_from_above():
    """1 - (1 - β(ρ))^K ≤ ρβ(ρ) at the ρ found, and not at a ρ a little smaller."""
    rng = np.random.default_rng(0)
    for k in (2, 3, 8):
        for _ in range(50):
            p, q = (rng.dirichlet(np.full(20, 0.5)) for _ in range(2))
            fork = Fork(np.arange(20), p, 0.0)

            def excess(rho: float, p=p, q=q, k=k) -> float:
                beta = min(1.0, np.minimum(q, p / rho).sum())
                return 1 - (1 - beta) ** k - rho * beta

            rho = least_rho(fork, q, k)
            assert 1.0 <= rho <= k
            assert excess(rho) <= 1e-12
            assert rho < 1.001 or excess(rho - 1e-3) > 0
