"""N-gram drafting: what stood here before is what may come next."""

import random
import time
import tracemalloc

from hypothesis import given
from hypothesis import strategies as st

from specserve.draft.ngram import History, NgramDrafter
from specserve.types import Close, Draft, Failed, Proposal, Propose, Sampling, SessionLost, SessionSpec, Verify

SPEC = SessionSpec(Sampling(), 1, 1 << 20)


def propose(drafter, tokens, depth, session=1, base_len=0):
    (*lost,) = drafter.submit(Propose(session, base_len, tuple(tokens), depth, None if base_len else SPEC))
    if lost:
        return lost[0]
    assert drafter.busy
    (reply,) = drafter.step()
    assert not drafter.busy
    return reply


def words(text):
    return tuple(ord(c) for c in text)


def drafted(text, depth=4, **options):
    reply = propose(NgramDrafter(**options), words(text), depth)
    assert reply.at == len(text)
    return reply.draft


def test_what_followed_the_last_tokens_before_is_drafted():
    assert drafted("abcde xabc").tokens == words("de x")


def test_the_longest_match_wins_over_frequent_shorter_ones():
    """`c` is mostly followed by 1, but after `abc` came 2."""
    assert drafted("c1c1c1abc2..abc", depth=1).tokens == words("2")
    assert drafted("c1c1c1abc2..abc", depth=1, max_ngram=1).tokens == words("1")


def test_the_most_frequent_continuation_wins_and_the_latest_of_equals():
    assert drafted("ab1ab2ab1-ab", depth=1).tokens == words("1")
    assert drafted("ab1ab2-ab", depth=1).tokens == words("2")


def test_further_rows_are_other_continuations_merged_as_a_trie():
    draft = drafted("abXYabXZ-ab", depth=2, rows=2)
    assert draft.tokens == words("XZY")
    assert draft.parents == (-1, 0, 0)


def test_rows_that_the_longest_match_leaves_free_go_to_shorter_ones():
    draft = drafted("abc1..bc2..c3...abc", depth=1, rows=3)
    assert draft.tokens == words("123") or draft.tokens == words("132")
    assert draft.parents == (-1, -1, -1)


def test_a_loop_is_drafted_as_a_loop():
    assert drafted("-----", depth=6).tokens == words("------")
    assert drafted("abcabc", depth=7).tokens == words("abcabca")


def test_a_short_match_is_not_trusted_far():
    assert len(drafted("abcdefghijkl a", depth=9)) == 3
    assert len(drafted("abcdefghijkl ab", depth=9)) == 6
    assert len(drafted("abcdefghijkl abc", depth=9)) == 9


def test_nothing_is_drafted_where_nothing_stood_before():
    assert drafted("abcdef") == Draft()
    assert drafted("a") == Draft()
    assert drafted("abcabc", depth=0) == Draft()


@given(
    st.lists(st.integers(0, 3), min_size=1, max_size=60),
    st.lists(st.integers(1, 9), max_size=9),
    st.integers(1, 4),
    st.integers(1, 9),
)
def test_a_proposal_depends_on_the_tokens_alone_not_on_how_they_came(tokens, cuts, rows, depth):
    whole = propose(NgramDrafter(rows=rows), tokens, depth).draft
    drafter, done = NgramDrafter(rows=rows), 0
    for cut in cuts:
        if done + cut < len(tokens):
            propose(drafter, tokens[done : done + cut], 3, base_len=done)
            done += cut
    reply = propose(drafter, tokens[done:], depth, base_len=done)
    assert reply == Proposal(1, len(tokens), whole, reply.compute_s)
    assert max(whole.depths(), default=0) <= depth
    assert len({(p, t) for p, t in zip(whole.parents, whole.tokens, strict=True)}) == len(whole), "siblings differ"
    assert list(whole.parents).count(-1) <= rows
    assert all(parent < node for node, parent in enumerate(whole.parents))


@given(st.lists(st.integers(0, 2), min_size=2, max_size=40), st.integers(1, 5))
def test_the_first_token_is_the_slow_oracles(tokens, max_ngram):
    """Written out by the definition: longest suffix first, then counts, then recency."""
    (row, *_) = *History.continuations(_history(tokens), max_ngram, 1, 1), ()
    expected = ()
    for n in range(min(max_ngram, len(tokens) - 1), 0, -1):
        follow = [tokens[i + n] for i in range(len(tokens) - n) if tokens[i : i + n] == tokens[-n:]]
        if follow:
            latest = {token: i for i, token in enumerate(follow)}
            expected = (max(follow, key=lambda token: (follow.count(token), latest[token])),)
            break
    assert row == expected


def test_a_session_of_another_length_is_lost_and_can_be_sent_again():
    drafter = NgramDrafter()
    assert propose(drafter, (4, 5), 3, base_len=3) == SessionLost(1, 0)
    propose(drafter, (1, 2, 3), 0)
    assert propose(drafter, (4, 5), 3, base_len=2) == SessionLost(1, 3)
    assert propose(drafter, (4, 1), 3, base_len=3).draft.tokens == (2, 3, 4)
    assert propose(drafter, (7, 7), 2).draft.tokens == (7, 7), "length 0 opens it anew"


def test_closing_forgets_also_what_waits():
    drafter = NgramDrafter()
    drafter.submit(Propose(1, 0, (1, 1), 3, SPEC))
    drafter.submit(Close(1))
    drafter.submit(Close(2))
    assert not drafter.busy
    assert drafter.stats()["sessions"] == 0


def test_a_verify_is_refused():
    (reply,) = NgramDrafter().submit(Verify(1, 0, (1,), Draft(), SPEC))
    assert isinstance(reply, Failed)


def test_the_quietest_session_is_forgotten_when_there_are_too_many():
    drafter = NgramDrafter(max_sessions=2)
    for session in (1, 2):
        propose(drafter, (1, 2), 0, session)
    propose(drafter, (3,), 0, 1, base_len=2)
    propose(drafter, (1, 2), 0, 3)
    assert propose(drafter, (3,), 0, 2, base_len=2) == SessionLost(2, 0)
    assert isinstance(propose(drafter, (4,), 0, 1, base_len=3), Proposal)


def test_memory_is_bounded_by_the_window():
    drafter = NgramDrafter(window=4096)
    text = tuple(range(50_000))
    tracemalloc.start()
    for i in range(0, 50_000, 1000):
        propose(drafter, text[i : i + 1000], 0, base_len=i)
    tail = tuple(text[-20:-17])
    assert propose(drafter, tail, 5, base_len=50_000).draft.tokens == text[-17:-12]
    assert propose(drafter, text[:3], 5, base_len=50_003).draft == Draft(), "out of the window"
    (_, peak) = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < 200_000


def test_a_proposal_at_2k_tokens_takes_at_most_a_fifth_of_a_millisecond():
    """Natural repetition: words of a small dictionary. The median of 200, so that a busy machine does not matter."""
    draw = random.Random(0)
    dictionary = [[draw.randrange(500) for _ in range(draw.randint(2, 6))] for _ in range(80)]
    text = [token for _ in range(600) for token in draw.choice(dictionary)]
    drafter = NgramDrafter(rows=3, max_tokens=16)
    propose(drafter, text[:2000], 0)
    seconds = []
    for i in range(200):
        drafter.submit(Propose(1, 2000 + i, (text[2000 + i],), 16))
        began = time.perf_counter()
        drafter.step()
        seconds.append(time.perf_counter() - began)
    assert sorted(seconds)[100] < 0.0002


def _history(tokens):
    history = History(1 << 16)
    history.extend(tokens)
    return history
