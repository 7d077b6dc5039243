"""`decide` with the rule `coupled`: what a round emits, and that nothing but (target, prompt, seed) can change it."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from specserve.errors import InvalidRequest, VerifyError
from specserve.types import Draft, Sampling, SessionSpec
from specserve.verify import Case, coupled, decide, lookup_rule, sample, top_coupled
from specserve.verify.noise import Purpose, gumbel, key

V = 13


def model(history) -> torch.Tensor:
    """A toy target: a fixed law for every history."""
    return torch.randn(V, generator=torch.Generator().manual_seed(hash(tuple(history)) % 2**31)) * 2


def spec(seed: int = 0, prompt_len: int = 2, rule: str = "coupled", **parameters: object) -> SessionSpec:
    return SessionSpec(Sampling(seed=seed, **parameters), prompt_len, 99, rule)  # type: ignore[arg-type]


def rows(case: Case) -> torch.Tensor:
    """The target's logits at every row of the case."""
    draft = case.draft
    paths = [[draft.tokens[i] for i in draft.path(node)] for node in range(-1, len(draft))]
    return torch.stack([model([*case.tokens, *path]) for path in paths])


def emitted(case: Case, outcome) -> list[int]:
    assert outcome.fault is None
    return [case.draft.tokens[i] for i in outcome.accepted] + [outcome.token]


def plain(spec_: SessionSpec, tokens: list[int], n: int) -> list[int]:
    """The oracle: decoding without drafts, one position at a time."""
    out: list[int] = []
    for _ in range(n):
        out.append(int(sample(model([*tokens, *out])[None], [spec_], [[*tokens, *out]])))
    return out


PARAMETERS = st.sampled_from(
    [
        {"temperature": 0.0},
        {"temperature": 0.0, "repetition_penalty": 1.5, "frequency_penalty": 0.8},
        {"temperature": 1.0},
        {"temperature": 0.7, "top_p": 0.8, "presence_penalty": 0.5},
        {"temperature": 1.3, "top_k": 4, "min_p": 0.05, "logit_bias": {3: 2.0}},
    ]
)


@st.composite
def a_case(draw) -> Case:
    spec_ = spec(draw(st.integers(0, 5)), **draw(PARAMETERS))
    tokens = draw(st.lists(st.integers(0, V - 1), min_size=2, max_size=6))
    truth = plain(spec_, tokens, 4)
    ids, parents = [], []
    for node in range(draw(st.integers(0, 7))):
        parent = draw(st.integers(-1, node - 1))
        depth = 0 if parent < 0 else len(Draft(tuple(ids), tuple(parents)).path(parent))
        good = depth < 4 and draw(st.booleans())
        ids.append(truth[depth] if good else draw(st.integers(0, V - 1)))
        parents.append(parent)
    return Case(spec_, tokens, Draft(tuple(ids), tuple(parents), ("x",) * len(ids)))


@settings(max_examples=70, deadline=None, derandomize=True)
@given(cases=st.lists(a_case(), min_size=1, max_size=4), at_once=st.booleans())
def test_a_round_emits_what_plain_decoding_would(cases, at_once):
    """Whatever the trees, parameters, seeds and batch: the emitted tokens are the plain ones, the path is as long as
    the tree allows. Both ways of walking."""
    patched = pytest.MonkeyPatch()
    with patched.context() as m:
        m.setattr("specserve.verify.coupled._AT_ONCE", 10**9 if at_once else 0)
        outcomes = decide(torch.cat([rows(c) for c in cases]), cases)
    for case, outcome in zip(cases, outcomes, strict=True):
        got = emitted(case, outcome)
        truth = plain(case.spec, list(case.tokens), len(got))
        assert got == truth
        last = outcome.accepted[-1] if outcome.accepted else -1
        assert list(case.draft.path(last)) == list(outcome.accepted)
        edges = zip(case.draft.parents, case.draft.tokens, strict=True)
        assert (last, outcome.token) not in set(edges)


def test_the_noise_is_that_of_the_absolute_position():
    """y = argmax(log p + g(seed, t)) with t = len(history). Kills: the noise of the neighbouring position."""
    law = model([1])
    for t in range(20):
        y = int(sample(law[None], [spec(seed=9, temperature=1.0)], [[0] * t]))
        assert y == int((law + gumbel([key(9, Purpose.TOKEN, t)], V)[0]).argmax())


def test_logits_of_any_float_type_are_taken():
    case = Case(spec(temperature=0.0), [1, 2], Draft.chain((3, 4)))
    logits = rows(case)
    for dtype in (torch.float16, torch.bfloat16, torch.float32, torch.float64):
        assert decide(logits.to(dtype), [case])[0].fault is None


def test_the_smallest_id_wins_a_greedy_tie():
    logits = torch.zeros(1, V, dtype=torch.bfloat16)
    logits[0, [4, 9]] = 1.5
    assert decide(logits, [Case(spec(), [1, 2], Draft())])[0].token == 4


def test_top_coupled_begins_with_the_sample():
    laws, specs, histories = torch.randn(3, V), [spec(seed=s, temperature=s / 2) for s in range(3)], [[1] * 4] * 3
    top = top_coupled(laws, specs, histories, 5)
    assert top.shape == (3, 5)
    assert top[:, 0].tolist() == sample(laws, specs, histories).tolist()
    assert all(len(set(row)) == 5 for row in top.tolist())


@pytest.mark.parametrize("bad", [math.nan, math.inf])
@pytest.mark.parametrize("temperature", [0.0, 1.0, 0.6])
@pytest.mark.parametrize("at_once", [0, 10**9])
def test_bad_logits_fail_their_own_case_only(bad, temperature, at_once, monkeypatch):
    monkeypatch.setattr(coupled, "_AT_ONCE", at_once)
    cases = [Case(spec(seed=s, temperature=temperature), [1, 2], Draft.chain((3, 4))) for s in range(3)]
    logits = torch.cat([rows(c) for c in cases])
    want = decide(logits, cases)
    logits[3, 5] = bad
    got = decide(logits, cases)
    assert got[0] == want[0]
    assert got[2] == want[2]
    assert got[1].token == -1
    assert got[1].fault == "logits at position 2 are not finite"


def test_logprobs_of_both_laws():
    """Processed and raw log-probabilities of every emitted token, and the most probable ones."""
    spec_ = spec(seed=3, temperature=0.5, top_k=3, logprobs=5)
    truth = plain(spec_, [1, 2], 3)
    case = Case(spec_, [1, 2], Draft.chain((truth[0], truth[1])))
    other = Case(spec(seed=3), [1, 2], Draft())
    outcome, silent = decide(torch.cat([rows(case), rows(other)]), [case, other])
    assert silent.logprobs == ()
    assert len(outcome.logprobs) == 3
    for i, (token, found) in enumerate(zip(emitted(case, outcome), outcome.logprobs, strict=True)):
        raw = model([1, 2, *truth[:i]]).log_softmax(-1)
        kept = raw.topk(3)
        law = dict(zip(kept.indices.tolist(), (kept.values / 0.5).log_softmax(-1).tolist(), strict=True))
        assert found.logprob == pytest.approx(law[token], abs=1e-5)
        assert found.raw == pytest.approx(float(raw[token]), abs=1e-5)
        assert [e[0] for e in found.top] == kept.indices.tolist()  # three of five asked: the others have probability 0
        assert [e[1] for e in found.top] == pytest.approx([law[e[0]] for e in found.top], abs=1e-5)
        assert [e[2] for e in found.top] == pytest.approx(kept.values.tolist(), abs=1e-5)


def test_greedy_logprobs_are_of_the_law_before_the_argmax():
    case = Case(spec(logprobs=0), [1, 2], Draft())
    found = decide(rows(case), [case])[0].logprobs[0]
    assert found.logprob == found.raw == pytest.approx(float(model([1, 2]).log_softmax(-1).max()), abs=1e-6)
    assert found.top == ()


def test_an_unknown_rule_names_the_field_and_the_choices():
    with pytest.raises(InvalidRequest, match=r"speculation\.rule must be one of coupled.*'magic'"):
        lookup_rule("magic")


def test_rows_that_do_not_fit_are_refused():
    with pytest.raises(VerifyError, match=r"\[2, V\]"):
        decide(torch.zeros(3, V), [Case(spec(), [1, 2], Draft.chain((1,)))])


def test_an_empty_batch_is_fine():
    assert decide(torch.zeros(0, V), []) == []
