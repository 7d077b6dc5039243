"""What requests leave behind: for their own tenant only, within the bound, and not at all when private."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from specserve.draft.ngram import NgramDrafter
from specserve.draft.ngram.memory import Memory
from specserve.types import Close, Draft, DraftContext, Propose, Sampling, SessionSpec

SECRET = tuple(range(100, 140))


def live(drafter, output, tenant="", private=False, session=1, prompt=(1, 2, 3), depth=5):
    """A whole request; the draft that it gets when its output's first three tokens are there."""
    context = DraftContext((), tenant, private)
    spec = SessionSpec(Sampling(), len(prompt), 1000)
    drafter.submit(Propose(session, 0, prompt, 0, spec, context=context))
    drafter.step()
    drafter.submit(Propose(session, len(prompt), output[:3], depth))
    (reply,) = drafter.step()
    if output[3:]:
        drafter.submit(Propose(session, len(prompt) + 3, output[3:], 0))
        drafter.step()
    drafter.submit(Close(session))
    return reply.draft


@pytest.mark.parametrize("strategy", ["suffix", "recycled"])
def test_a_tenants_outputs_are_drafted_from_by_its_own_requests_alone(strategy):
    drafter = NgramDrafter(strategies=(strategy,), tune=False)
    live(drafter, SECRET, "a")
    assert live(drafter, SECRET[:3], "a").tokens[:5] == SECRET[3:8]
    for stranger in ("b", "", "A"):
        assert live(drafter, SECRET[:3], stranger) == Draft()


@pytest.mark.parametrize("strategy", ["suffix", "recycled"])
def test_of_a_private_request_nothing_is_kept_but_it_may_draft_from_what_others_left(strategy):
    drafter = NgramDrafter(strategies=(strategy,), tune=False)
    live(drafter, SECRET, "a", private=True)
    assert drafter.stats()["tenants"] == 0
    assert live(drafter, SECRET[:3], "a") == Draft()
    live(drafter, SECRET, "a")
    assert live(drafter, SECRET[:3], "a", private=True).tokens[:5] == SECRET[3:8]


def test_neither_prompt_nor_reference_is_kept():
    drafter = NgramDrafter(strategies=("suffix", "recycled"), tune=False)
    spec = SessionSpec(Sampling(), len(SECRET), 1000)
    drafter.submit(Propose(1, 0, SECRET, 0, spec, context=DraftContext(reference=SECRET)))
    drafter.submit(Close(1))
    drafter.submit(Propose(2, 0, (*SECRET, 7, 8), 3, spec))
    drafter.step()
    drafter.submit(Close(2))
    assert live(drafter, SECRET[:3]) == Draft()


def test_a_request_cut_off_by_its_router_leaves_what_it_had():
    drafter = NgramDrafter(strategies=("suffix",), tune=False)
    live(drafter, SECRET[:20])
    assert live(drafter, SECRET[:3]).tokens == SECRET[3:8]


@settings(max_examples=30)
@given(st.lists(st.tuples(st.sampled_from("abcdefgh"), st.integers(1, 400)), max_size=60), st.integers(0, 200_000))
def test_the_bound_holds_whatever_comes_and_the_books_are_right(requests, limit):
    memory, token = Memory(limit), 0
    for tenant, size in requests:
        output = np.arange(token, token + size, dtype=np.int32) % 500
        token += size
        memory.learn(tenant, output.tolist())
        assert memory.nbytes <= limit
        memory.keep(tenant, output)
        assert memory.nbytes <= limit
        assert memory.nbytes == sum(memory.look(t).nbytes for t in "abcdefgh" if memory.look(t))


def test_the_tenant_that_has_been_quiet_longest_goes_first():
    memory = Memory(3 * 21_000)
    for tenant in "abc":
        memory.keep(tenant, np.arange(10, dtype=np.int32))
    memory.look("a")
    memory.keep("d", np.arange(10, dtype=np.int32))
    assert memory.evicted == 1
    assert [tenant for tenant in "abcd" if memory.look(tenant)] == ["a", "c", "d"]


def test_no_memory_keeps_nothing():
    drafter = NgramDrafter(strategies=("suffix", "recycled", "context"), memory_bytes=0)
    live(drafter, SECRET)
    assert drafter.stats()["memory_bytes"] == 0
