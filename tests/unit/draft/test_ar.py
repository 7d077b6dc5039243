"""The AR drafter: chains are its own law under the target's noise, keys are reused, and trouble costs only speed."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from ar_toys import CONTEXT, VOCAB, begin, drain, law, own_text, text

from specserve.draft.ar import ArDrafter
from specserve.engine import Engine, Verifier
from specserve.errors import ConfigError
from specserve.types import (
    Close,
    Command,
    Draft,
    Proposal,
    Propose,
    Sampling,
    SessionLost,
    SessionSpec,
    Verdict,
    Verify,
)

SAMPLINGS: list[dict[str, Any]] = [
    {},
    {"temperature": 1.0, "seed": 5},
    {"temperature": 0.7, "seed": 6, "top_k": 20, "presence_penalty": 0.8, "repetition_penalty": 1.2},
]


@pytest.mark.parametrize("sampling", SAMPLINGS, ids=["greedy", "sampled", "penalties"])
def test_a_chain_is_the_drafters_own_text_under_the_sessions_noise(sampling: dict[str, Any], make_drafter):
    drafter = make_drafter(trace=True, name="small")
    [proposal] = drain(drafter, begin(1, text(20), 5, **sampling))
    assert proposal.draft == Draft.chain(own_text(drafter, text(20), 5, **sampling), "small")
    assert (proposal.session, proposal.at) == (1, 20)
    assert proposal.compute_s > 0


def test_sessions_of_a_ragged_batch_draft_what_each_would_alone(make_drafter):
    drafter = make_drafter(trace=True)
    commands = [begin(i, text(3 + 2 * i, i), 1 + i, **SAMPLINGS[i]) for i in range(3)]
    proposals = {reply.session: reply.draft.tokens for reply in drain(drafter, *commands)}
    want = {i: own_text(drafter, text(3 + 2 * i, i), 1 + i, **SAMPLINGS[i]) for i in range(3)}
    assert proposals == want


@pytest.mark.parametrize("kept", [0, 2, 4, 5])
def test_accepted_tokens_keep_their_keys_and_rejected_ones_leave_no_trace(kept: int, make_drafter):
    drafter = make_drafter()
    [first] = drain(drafter, begin(1, text(20), 5))
    seen = drafter.stats()["tokens_seen"]
    fresh = (first.draft.tokens[kept] + 1) % VOCAB if kept < 5 else 7
    committed = (*first.draft.tokens[:kept], fresh)
    [second] = drain(drafter, Propose(1, 20, committed, 5))
    assert second.draft.tokens == own_text(drafter, [*text(20), *committed], 5)
    assert second.at == 21 + kept
    # The last drafted token never had keys; otherwise only the token that the target added is new.
    assert drafter.stats()["tokens_seen"] - seen == (2 if kept == 5 else 1)


def test_a_drafter_that_is_the_target_is_accepted_in_full_at_temperature_1(make_drafter, small_model: Path):
    """Same model, same seed, same position, same noise: every drafted token is the target's own."""
    drafter = make_drafter()
    verifier = Verifier(Engine(small_model, slots=400, trace=False))
    spec = SessionSpec(Sampling(temperature=1.0, seed=11, top_p=0.95), 10, 60)
    held, new = 0, tuple(text(10))
    for _ in range(5):
        [proposal] = drain(drafter, Propose(1, held, new, 4, spec))
        base = 0 if held == 0 else held + len(new)
        verifier.submit(Verify(1, base, new if held == 0 else (), proposal.draft, spec if held == 0 else None))
        [verdict] = verifier.step()
        assert isinstance(verdict, Verdict)
        assert verdict.accepted == (0, 1, 2, 3)
        held, new = held + len(new), (*proposal.draft.tokens, verdict.token)


def test_depth_0_takes_the_tokens_in_and_drafts_nothing(make_drafter):
    drafter = make_drafter()
    [proposal] = drain(drafter, begin(1, text(30), 0))
    assert (proposal.at, proposal.draft) == (30, Draft())
    seen = drafter.stats()["tokens_seen"]
    [proposal] = drain(drafter, Propose(1, 30, (5,), 3))
    assert proposal.draft.tokens == own_text(drafter, [*text(30), 5], 3)
    assert drafter.stats()["tokens_seen"] - seen == 1
    [proposal] = drain(drafter, Propose(1, 31, (), 2))
    assert proposal.draft.tokens == own_text(drafter, [*text(30), 5], 2)


def test_a_wrong_base_length_is_answered_with_what_is_held_and_a_resend_reuses_the_keys(make_drafter):
    drafter = make_drafter()
    assert drain(drafter, Propose(1, 9, (5,), 3)) == [SessionLost(1, 0)]
    drain(drafter, begin(1, text(30), 3))
    assert drain(drafter, Propose(1, 29, (5,), 3)) == [SessionLost(1, 30)]
    seen = drafter.stats()["tokens_seen"]
    [proposal] = drain(drafter, begin(1, [*text(30), 5], 3))
    assert proposal.draft.tokens == own_text(drafter, [*text(30), 5], 3)
    assert drafter.stats()["tokens_seen"] - seen == 1


def test_a_newer_command_replaces_the_one_that_still_waits(make_drafter):
    """A round that went on without its late draft: only the newer command is answered."""
    drafter = make_drafter()
    drafter.submit(begin(1, text(5), 4))
    [proposal] = drain(drafter, Propose(1, 5, (7, 8), 2))
    assert (proposal.at, proposal.draft.tokens) == (7, own_text(drafter, [*text(5), 7, 8], 2))


def test_a_full_pool_refuses_the_newcomer_and_evicts_nobody(make_drafter):
    drafter = make_drafter(slots=120)
    drain(drafter, begin(1, text(5), 3))
    [failed] = drain(drafter, begin(2, text(5), 3))
    assert (failed.session, failed.kind) == (2, "Overloaded")
    [proposal] = drain(drafter, Propose(1, 5, (7,), 3))
    assert len(proposal.draft) == 3
    drafter.submit(Close(1))
    assert len(drain(drafter, begin(2, text(5), 3))[0].draft) == 3


def test_chains_end_at_the_last_position_of_the_drafter_and_longer_texts_go_undrafted(make_drafter):
    drafter = make_drafter()
    drain(drafter, begin(1, text(CONTEXT - 2), 0, max_len=500))
    short, full = drain(drafter, Propose(1, CONTEXT - 2, (), 5), begin(2, text(9), 5))
    assert short.draft.tokens == own_text(drafter, text(CONTEXT - 2), 2)
    assert full.draft.tokens == own_text(drafter, text(9), 5)
    for base, new, drafted in ((CONTEXT - 2, (5, 6), 0), (CONTEXT, (7,), 0)):
        [proposal] = drain(drafter, Propose(1, base, new, 5))
        assert (proposal.at, len(proposal.draft)) == (base + len(new), drafted)


def test_ids_beyond_the_targets_vocabulary_are_never_proposed(make_drafter):
    drafter = make_drafter(vocab_size=40)
    prompt = [token % 40 for token in text(12)]
    for sampling in SAMPLINGS:
        [proposal] = drain(drafter, begin(1, prompt, 8, **sampling))
        assert len(proposal.draft) == 8
        assert max(proposal.draft.tokens) < 40


def test_a_chain_ends_with_the_token_that_takes_confidence_below_the_floor(make_drafter):
    """Whether token i is sent never depends on tokens after i: the shorter chain is a beginning of the longer."""
    plain, careful = make_drafter(), make_drafter(min_confidence=0.05)
    lengths = []
    for seed in range(6):
        prompt = text(12, seed)
        [full], [short] = drain(plain, begin(seed, prompt, 6)), drain(careful, begin(seed, prompt, 6))
        trust, length = 1.0, 0
        for token in full.draft.tokens:
            trust *= float(law(plain, [*prompt, *full.draft.tokens[:length]]).softmax(-1)[0, token])
            length += 1
            if trust < 0.05:
                break
        assert short.draft.tokens == full.draft.tokens[:length]
        lengths.append(length)
        [following] = drain(careful, Propose(seed, 12, (*short.draft.tokens, 5), 1))
        assert following.draft.tokens == own_text(careful, [*prompt, *short.draft.tokens, 5], 1)
    assert 1 < sum(lengths) / len(lengths) < 6, "the floor must matter here"


def test_a_long_prompt_does_not_hold_up_the_drafts_of_others(make_drafter):
    drafter = make_drafter()
    drain(drafter, begin(1, text(5), 2))
    drafter.submit(begin(2, text(80), 2))
    drafter.submit(Propose(1, 5, (7,), 2))
    sessions = [reply.session for _ in range(2) for reply in drafter.step()]
    assert sessions == [1]
    [proposal] = drain(drafter)
    assert proposal.draft.tokens == own_text(drafter, text(80), 2)


@pytest.mark.parametrize("when", ["waiting", "mid-prompt", "between rounds", "never opened"])
def test_close_frees_everything_at_any_point(when: str, make_drafter):
    drafter = make_drafter()
    if when != "never opened":
        drafter.submit(begin(1, text(80), 3))
    if when == "mid-prompt":
        drafter.step()
    if when == "between rounds":
        drain(drafter)
    assert not drafter.submit(Close(1))
    assert not drafter.busy
    assert drafter.stats()["slots_used"] == drafter.stats()["sessions"] == 0


@pytest.mark.parametrize(
    ("command", "message"),
    [
        (begin(1, [5, VOCAB], 3), f"token_ids must be between 0 and {VOCAB - 1}"),
        (begin(1, [], 3), "tokens must hold at least one token"),
        (Verify(1, 0, (5,)), "command must be Propose or Close at a drafter"),
    ],
)
def test_a_command_that_cannot_be_done_names_field_and_bound(command: Command, message: str, make_drafter):
    drafter = make_drafter()
    [failed] = drain(drafter, command)
    assert failed.kind == "InvalidRequest"
    assert message in failed.message
    assert drafter.engine.sessions == set()


def test_the_configured_depth_bounds_every_chain_and_must_fit_the_engine(make_drafter):
    drafter = make_drafter(max_tokens=3)
    [proposal] = drain(drafter, begin(1, text(5), 8))
    assert isinstance(proposal, Proposal)
    assert len(proposal.draft) == 3
    with pytest.raises(ConfigError, match="max_tokens must be between 1 and the engine's max_nodes 8; got 9"):
        ArDrafter(drafter.engine, max_tokens=9)
    with pytest.raises(ConfigError, match="min_confidence must be at least 0 and below 1; got 1"):
        ArDrafter(drafter.engine, min_confidence=1.0)
    with pytest.raises(ConfigError, match="branches must be at least 1; got 0"):
        ArDrafter(drafter.engine, branches=0)
    with pytest.raises(ConfigError, match="max_nodes must be between 1 and the engine's max_nodes 8; got 9"):
        ArDrafter(drafter.engine, max_nodes=9)
