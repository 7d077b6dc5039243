"""The small parts that rounds are made of."""

import asyncio

import pytest
from hypothesis import given
from hypothesis import strategies as st
from virtual import run

from specserve.errors import Overloaded
from specserve.serving.admission import Admission
from specserve.serving.drafting import follow, sound
from specserve.serving.generation import join as join_drafts
from specserve.serving.mailbox import Mailbox, join
from specserve.types import Chunk, Draft, EmittedToken, Finished, FinishReason, Origin, Round, SparseLaw, Usage

LAW = SparseLaw((1,), (1.0,))


@pytest.mark.parametrize(
    ("given_tokens", "given_parents", "kept"),
    [
        ((1, 2, 3), (-1, 0, 1), 3),
        ((1, 2, 3, 4), (-1, 0, 1, 2), 3),  # deeper than asked
        ((1, 99, 3), (-1, 0, 1), 1),  # no such id
        ((1, -1, 3), (-1, 0, 1), 1),
        ((1, 2, 3), (-1, 1, 0), 1),  # its own parent
        ((1, 2, 3), (-1, -2, 0), 1),
        ((1, 2, 3), (-1, 0), 2),  # parents missing
        ((1, 2, 3, 4, 5, 6, 7), (-1, 0, 1, -1, 3, 4, 3), 6),  # over the budget
        ((1, 2, 3, 4, 5), (-1, 0, 1, 2, -1), 3),
        ((), (), 0),
    ],
)
def test_of_a_proposal_the_part_that_can_be_verified_is_kept(given_tokens, given_parents, kept):
    draft = sound(Draft(given_tokens, given_parents, ("me",)), "pool", depth=3, nodes=6, vocab_size=50)
    assert draft == Draft(given_tokens[:kept], given_parents[:kept], ("pool",) * kept)


def test_a_draft_with_laws_or_chains_is_taken_whole_or_not_at_all():
    whole = Draft((1, 2), (-1, 0), ("x", "x"), (LAW, LAW), ((0, 1), (0,)))
    assert sound(whole, "x", 2, 6, 50) == whole
    assert sound(whole, "x", 1, 6, 50) == Draft()
    assert sound(whole, "x", 2, 1, 50) == Draft()
    assert sound(Draft((1, 2), (-1, 0), ("x", "x"), (LAW,)), "x", 2, 6, 50) == Draft()
    assert sound(Draft((1, 2), (-1, 0), ("x", "x"), None, ((0, 7),)), "x", 2, 6, 50) == Draft()


def test_drafts_are_joined_within_the_budget_and_laws_are_never_mixed():
    a, b = Draft.chain((1, 2, 3), "a"), Draft.chain((1, 9, 8), "b")
    assert join_drafts([], 9) == Draft()
    assert join_drafts([a, b], 9) == Draft((1, 2, 3, 9, 8), (-1, 0, 1, 0, 3), ("a", "a", "a", "b", "b"))
    assert join_drafts([a, b], 4) == Draft((1, 2, 3, 9), (-1, 0, 1, 0), ("a", "a", "a", "b"))
    drawn = Draft((4,), (-1,), ("c",), (LAW,))
    assert join_drafts([drawn, a], 9) == drawn
    assert join_drafts([a, drawn], 9) == a


@given(st.data())
def test_a_proposal_is_followed_as_the_text_goes(data):
    """Against the definition: the longest path of the tree that the text begins with."""
    n = data.draw(st.integers(0, 8))
    parents = tuple(data.draw(st.integers(-1, i - 1)) for i in range(n))
    siblings = [parents[:i].count(p) for i, p in enumerate(parents)]
    draft = Draft(tuple(siblings), parents, ("",) * n)  # siblings differ
    text = data.draw(st.lists(st.integers(0, 3), max_size=6))
    paths = {tuple(draft.tokens[i] for i in draft.path(node)) for node in range(n)} | {()}
    matched = max(len(p) for p in paths if p == tuple(text[: len(p)]))
    goes_on = any(len(p) == matched + 1 and p[:matched] == tuple(text[:matched]) for p in paths)
    expected = None if goes_on and matched == len(text) else (matched, goes_on)
    assert follow(draft, [7, 7, *text], 2) == expected


def _chunk(text, at):
    token = EmittedToken(ord(text[0]), Origin.BONUS, text_end=len(text))
    return Chunk((token,), text, Round(1.0, 0.5, 0.1, nodes=2, depth=at, batch=3 - at))


def test_joined_chunks_keep_every_tokens_text_and_add_the_rounds_up():
    chunk = join(_chunk("ab", 1), _chunk("cde", 2))
    assert chunk.text == "abcde"
    assert [token.text_end for token in chunk.tokens] == [2, 5]
    assert chunk.round == Round(2.0, 1.0, 0.2, nodes=4, depth=2, batch=2)


def test_a_mailbox_is_bounded_and_tells_its_end_last():
    async def story():
        box = Mailbox(room=2)
        for text in "abcd":
            box.put(_chunk(text, 1))
        box.end(Finished(FinishReason.STOP, Usage()))
        box.end(RuntimeError("too late"))
        assert [(await box.get()).text for _ in range(2)] == ["a", "bcd"]
        assert isinstance(await box.get(), Finished)

    run(story())


def test_a_place_given_at_the_moment_of_giving_up_goes_to_the_next():
    async def story():
        admission = Admission(1, 5, 10.0)
        await admission.enter()
        first, second = (asyncio.ensure_future(admission.enter()) for _ in range(2))
        await asyncio.sleep(0)
        admission.leave()
        first.cancel()
        await second
        assert (admission.inside, admission.waiting) == (1, 0)
        admission.leave()
        assert admission.inside == 0
        assert first.cancelled()

    run(story())


def test_places_are_given_in_the_order_of_arrival():
    async def story():
        admission, order = Admission(1, 5, 10.0), []
        await admission.enter()

        async def visit(name):
            await admission.enter()
            order.append(name)
            admission.leave()

        visits = [asyncio.ensure_future(visit(name)) for name in "abc"]
        await asyncio.sleep(0)
        admission.leave()
        await asyncio.wait(visits)
        assert order == ["a", "b", "c"]
        assert admission.inside == 0

    run(story())


def test_no_room_at_all_refuses_at_once():
    async def story():
        admission = Admission(1, 0, 10.0)
        await admission.enter()
        with pytest.raises(Overloaded):
            await admission.enter()

    run(story())
