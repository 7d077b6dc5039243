"""How a session takes verdicts in, and how it ends: nothing is emitted or counted past a stop."""

import itertools

import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from toys import EOS, byte_tokenizer

from specserve.errors import VerifyError
from specserve.serving.detokenize import Detokenizers
from specserve.serving.session import Session
from specserve.serving.stops import StopStrings
from specserve.types import Draft, FinishReason, Origin, Sampling, TokenLogprobs, Verdict

DETOKENIZERS = Detokenizers(byte_tokenizer())
PROMPT = (1, 2)


def session(**sampling):
    sampling.setdefault("max_tokens", 100)
    return Session(PROMPT, Sampling(**sampling), (EOS,), DETOKENIZERS.new(PROMPT))


def say(session, text, drafted=None):
    """One round whose draft is all but the last of `text` (or `drafted` of it), fully accepted."""
    ids = tuple(text.encode()) if isinstance(text, str) else tuple(text)
    n = len(ids) - 1 if drafted is None else drafted
    draft = Draft.chain(ids[:n], "d")
    return session.apply(Verdict(7, len(session), tuple(range(n)), ids[n]), draft)


def test_a_block_is_its_accepted_path_and_one_token_of_the_targets_own():
    tree = Draft((10, 11, 12, 13), (-1, -1, 1, 2), ("a", "b", "b", "c"))
    s = session()
    emission = s.apply(Verdict(7, 2, (1, 2), 99), tree)
    assert [(t.id, t.origin, t.drafter) for t in emission.tokens] == [
        (11, Origin.ACCEPTED, "b"),
        (12, Origin.ACCEPTED, "b"),
        (99, Origin.RECOVERED, ""),
    ]
    assert {name: (u.drafted, u.accepted) for name, u in s.usage.drafters.items()} == {
        "a": (1, 0),
        "b": (2, 2),
        "c": (1, 0),
    }
    assert s.tokens == [1, 2, 11, 12, 99]


def test_the_last_token_is_a_bonus_when_all_was_accepted_or_nothing_was_drafted():
    s = session()
    assert s.apply(Verdict(7, 2, (), 5), Draft()).tokens[0].origin is Origin.BONUS
    assert s.apply(Verdict(7, 3, (0,), 5), Draft.chain((9,), "d")).tokens[1].origin is Origin.BONUS
    assert s.apply(Verdict(7, 5, (), 5), Draft.chain((9,), "d")).tokens[0].origin is Origin.RECOVERED


def test_the_end_of_the_sequence_ends_it_in_the_middle_of_a_block():
    s = session()
    emission = say(s, [*b"ab", EOS, *b"cdef"])
    assert [t.id for t in emission.tokens] == [*b"ab", EOS]
    assert (emission.text, emission.reason) == ("ab", FinishReason.STOP)
    assert s.usage.emitted_tokens == 3
    assert (s.usage.drafters["d"].drafted, s.usage.drafters["d"].accepted) == (3, 3)


def test_ignore_eos_goes_on_but_stop_ids_still_stop():
    s = session(ignore_eos=True, stop_token_ids=(ord("d"),))
    emission = say(s, [*b"ab", EOS, *b"cdef"])
    assert [t.id for t in emission.tokens] == [*b"ab", EOS, *b"cd"]
    assert (emission.text, emission.reason) == ("abc", FinishReason.STOP)


def test_a_stop_string_cuts_the_text_before_it_and_the_tokens_after_the_one_that_completed_it():
    s = session(stop=("\n\n",))
    emission = say(s, "one\n\ntwo")
    assert (emission.text, emission.reason) == ("one", FinishReason.STOP)
    assert bytes(t.id for t in emission.tokens) == b"one\n\n"
    assert s.usage.emitted_tokens == 5


def test_a_stop_string_across_rounds_is_held_back_and_let_go_when_it_was_none():
    s = session(stop=("END",))
    assert say(s, "abE").text == "ab"
    assert say(s, "N").text == ""
    assert say(s, "E").text == "EN"
    last = say(s, "NDx")
    assert (last.text, last.reason) == ("", FinishReason.STOP)
    assert len(last.tokens) == 2


def test_held_back_text_comes_out_when_the_request_ends_otherwise():
    s = session(stop=("END",), max_tokens=4)
    emission = say(s, "abEN")
    assert (emission.text, emission.reason) == ("abEN", FinishReason.LENGTH)
    s = session(stop=("END",))
    assert say(s, [*b"abEN", EOS]).text == "abEN"


def test_max_tokens_ends_it_in_the_middle_of_a_block():
    s = session(max_tokens=3)
    emission = say(s, "abcdef")
    assert (emission.text, emission.reason, s.usage.emitted_tokens) == ("abc", FinishReason.LENGTH, 3)
    assert s.usage.drafters["d"].drafted == 3


def test_a_stop_on_the_very_last_token_is_reported_as_the_stop():
    s = session(max_tokens=3, stop=("c",))
    assert say(s, "abc").reason is FinishReason.STOP
    s = session(max_tokens=3)
    assert say(s, [*b"ab", EOS]).reason is FinishReason.STOP


def test_half_a_character_at_the_end_reads_as_the_replacement_character():
    s = session(max_tokens=2)
    assert say(s, "a€"[:2].encode()[:2]).text == "a\N{REPLACEMENT CHARACTER}"


def test_each_token_says_how_much_text_came_with_it():
    s = session()
    emission = say(s, "aé!")
    assert [t.text_end for t in emission.tokens] == [1, 1, 2, 3]


def test_logprobs_go_with_their_tokens():
    s, laws = session(), tuple(TokenLogprobs(-i, -i) for i in range(3))
    emission = s.apply(Verdict(7, 2, (0, 1), 5, laws), Draft.chain((3, 4), "d"))
    assert tuple(t.logprobs for t in emission.tokens) == laws


@pytest.mark.parametrize(
    "verdict",
    [
        Verdict(7, 3, (), 5),
        Verdict(7, 1, (), 5),
        Verdict(7, 2, (1,), 5),
        Verdict(7, 2, (0, 2), 5),
        Verdict(7, 2, (0, 1, 2, 3), 5),
        Verdict(7, 2, (-1,), 5),
        Verdict(7, 2, (0,), 5, (TokenLogprobs(0, 0),)),
    ],
)
def test_a_verdict_that_does_not_fit_is_refused_and_changes_nothing(verdict):
    s = session()
    with pytest.raises(VerifyError):
        s.apply(verdict, Draft.chain((3, 4, 5), "d"))
    assert (s.tokens, s.usage.rounds) == ([1, 2], 0)


def test_a_verdict_after_the_end_is_refused():
    s = session(max_tokens=1)
    say(s, "a")
    with pytest.raises(VerifyError):
        say(s, "b")


def test_room_is_the_deepest_draft_that_can_be_emitted_whole():
    s = session(max_tokens=4)
    assert s.room == 3
    say(s, "abc")
    assert s.room == 0


def _cut(text, cuts):
    ends = sorted({c % (len(text) + 1) for c in cuts} | {0, len(text)})
    return [text[a:b] for a, b in itertools.pairwise(ends)]


@example("ab", ["ab", "b"], [])
@given(
    st.text("ab", max_size=30),
    st.lists(st.text("ab", min_size=1, max_size=5), max_size=4),
    st.lists(st.integers(0, 30), max_size=8),
)
def test_stop_strings_are_found_however_the_text_is_cut(text, stops, cuts):
    """The oracle: the first end at which any stop is complete; of those the longest."""
    ends = [(i, stop) for i in range(len(text) + 1) for stop in stops if text[:i].endswith(stop)]
    expected, hit = text, False
    if ends:
        first = ends[0][0]
        expected, hit = text[: first - max(len(stop) for end, stop in ends if end == first)], True
    scanner, pushed, shown, stopped = StopStrings(stops), "", "", False
    for piece in _cut(text, cuts):
        visible, stopped = scanner.push(piece)
        shown += visible
        if stopped:
            break
        pushed += piece
        begins = [n for stop in stops for n in range(1, len(stop)) if pushed.endswith(stop[:n])]
        assert len(pushed) - len(shown) == max(begins, default=0), "kept back what may begin a stop, and no more"
    else:
        shown += scanner.flush()
    assert (shown, stopped) == (expected, hit)
