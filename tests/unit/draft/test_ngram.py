"""The n-gram drafter as its worker sees it: what stood here before is what may come next."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from specserve.draft.ngram import NgramDrafter
from specserve.errors import ConfigError
from specserve.types import (
    Close,
    Draft,
    DraftContext,
    Failed,
    Proposal,
    Propose,
    Sampling,
    SessionLost,
    SessionSpec,
    Verify,
)

SPEC = SessionSpec(Sampling(), 1, 1 << 20)


def propose(drafter, tokens, depth, session=1, base_len=0, price=0.0, nodes=0, context=None, spec=SPEC):
    command = Propose(session, base_len, tuple(tokens), depth, None if base_len else spec, nodes, price, context)
    (*lost,) = drafter.submit(command)
    if lost:
        return lost[0]
    assert drafter.busy
    (reply,) = drafter.step()
    assert not drafter.busy
    return reply


def words(text):
    return tuple(ord(c) for c in text)


def drafted(text, depth=4, rows=1, **options):
    """The first rows, whole."""
    drafter = NgramDrafter(strategies=("context",), rows=rows, context_rows=rows, tune=False, **options)
    reply = propose(drafter, words(text), depth)
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
    assert draft.tokens == words("123")
    assert draft.parents == (-1, -1, -1)


def test_a_loop_is_drafted_as_a_loop():
    assert drafted("-----", depth=6).tokens == words("------")
    assert drafted("abcabc", depth=7).tokens == words("abcabca")


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
def test_untuned_a_proposal_depends_on_the_tokens_alone_not_on_how_they_came(tokens, cuts, rows, depth):
    options = {"strategies": ("context", "suffix"), "rows": rows, "tune": False}
    whole = propose(NgramDrafter(**options), tokens, depth).draft
    drafter, done = NgramDrafter(**options), 0
    for cut in cuts:
        if done + cut < len(tokens):
            propose(drafter, tokens[done : done + cut], 3, base_len=done)
            done += cut
    reply = propose(drafter, tokens[done:], depth, base_len=done)
    assert (reply.at, reply.draft) == (len(tokens), whole)
    assert_sound(whole, depth)


def assert_sound(draft, depth):
    assert max(draft.depths(), default=0) <= depth
    assert len({(p, t) for p, t in zip(draft.parents, draft.tokens, strict=True)}) == len(draft), "siblings differ"
    assert all(-1 <= parent < node for node, parent in enumerate(draft.parents))


@settings(max_examples=50, deadline=None)
@given(st.lists(st.integers(0, 3), min_size=30, max_size=90), st.integers(1, 9), st.integers(1, 12), st.integers(0, 2))
def test_tuned_a_draft_keeps_to_its_depth_nodes_and_branches(tokens, depth, nodes, branches):
    spec = SessionSpec(Sampling(), 5, 1 << 20, branches=branches)
    drafter = NgramDrafter(rows=8, context_rows=8)
    for at in range(0, len(tokens), 3):
        draft = propose(drafter, tokens[at : at + 3], depth, base_len=at, price=0.01, nodes=nodes, spec=spec).draft
        assert_sound(draft, depth)
        assert len(draft) <= nodes
        if branches:
            assert max((draft.parents.count(node) for node in range(-1, len(draft))), default=0) <= branches


def test_a_dear_node_is_not_drafted_and_a_cheap_one_is():
    text = words("abXabYabZabWab")
    lengths = [len(propose(NgramDrafter(), text, 6, price=price).draft) for price in (0.001, 0.1, 0.5, 1.0)]
    assert lengths[0] > lengths[1] > lengths[3] == 0
    assert lengths == sorted(lengths, reverse=True)


def test_a_strategy_that_is_never_right_loses_its_rows():
    """The text never repeats what followed; at a fixed price, drafts shrink to nothing."""
    drafter, sizes = NgramDrafter(strategies=("context",)), []
    text = [0]
    for i in range(120):
        text += [1, 2 + i]
    done = 0
    for at in range(2, len(text), 2):
        sizes.append(len(propose(drafter, text[done:at], 4, base_len=done, price=0.15).draft))
        done = at
    assert max(sizes[:10]) > 0
    assert sizes[-40:] == [0] * 40


def test_what_a_session_has_shown_outweighs_what_others_have():
    """Two sessions share a drafter; in one, copies are always right, in the other never."""
    drafter = NgramDrafter(strategies=("context",), max_tokens=4)
    right = [7, 8, 9] * 100
    wrong = [token for i in range(100) for token in (7, 8, 100 + i)]
    for i in range(2, 300, 2):
        good = propose(drafter, right[i - 2 : i], 4, session=1, base_len=i - 2, price=0.3)
        bad = propose(drafter, wrong[i - 2 : i], 4, session=2, base_len=i - 2, price=0.3)
    assert len(good.draft) == 4
    assert len(bad.draft) < 4


def test_a_reference_is_copied_from_and_ends_where_it_ends():
    context = DraftContext(reference=words("the quick brown fox"))
    drafter = NgramDrafter(strategies=("context",), rows=1, tune=False)
    assert propose(drafter, words("q: quick b"), 5, context=context).draft.tokens == words("rown ")
    assert propose(drafter, words("q: fo"), 5, session=2, context=context).draft.tokens == words("x")
    assert propose(drafter, words("q: fo"), 5, session=3).draft == Draft()


def test_a_session_of_another_length_is_lost_and_can_be_sent_again():
    drafter = NgramDrafter(strategies=("context",), rows=1, tune=False)
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


def test_an_unknown_strategy_is_refused_with_the_known_ones():
    with pytest.raises(ConfigError, match="must be among context, suffix, bigram, recycled, unigram; got luck"):
        NgramDrafter(strategies=("luck",))


def test_the_quietest_session_is_forgotten_when_there_are_too_many():
    drafter = NgramDrafter(max_sessions=2)
    for session in (1, 2):
        propose(drafter, (1, 2), 0, session)
    propose(drafter, (3,), 0, 1, base_len=2)
    propose(drafter, (1, 2), 0, 3)
    assert propose(drafter, (3,), 0, 2, base_len=2) == SessionLost(2, 0)
    assert isinstance(propose(drafter, (4,), 0, 1, base_len=3), Proposal)


def test_many_sessions_are_answered_over_several_steps_each_once():
    drafter = NgramDrafter()
    for session in range(100):
        drafter.submit(Propose(session, 0, (1, 2, 1), 3, SPEC))
    replies = []
    while drafter.busy:
        replies += drafter.step()
    assert sorted(reply.session for reply in replies) == list(range(100))


def test_stats_name_what_each_strategy_drafted_and_what_was_accepted():
    drafter = NgramDrafter(strategies=("context",), rows=1, tune=False)
    propose(drafter, words("abcab"), 2)
    propose(drafter, words("ca!"), 2, base_len=5)
    stats = drafter.stats()
    assert (stats["rows_per_draft"], stats["depth_per_draft"]) == (1, 2)
    assert stats["context_drafted_tokens"] == 2 == stats["context_accepted_tokens"]
    assert stats["drafted_tokens"] == 2
    assert stats["memory_bytes"] <= stats["memory_limit_bytes"]
