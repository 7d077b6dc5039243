"""The searched text against slow oracles."""

import tracemalloc

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from specserve.draft.ngram.history import SEAM, History

texts = st.lists(st.integers(0, 2), min_size=1, max_size=60)


def history(tokens, window=1 << 16, reference=()):
    made = History(window, reference)
    made.extend(tokens)
    return made


@given(texts, texts, st.integers(1, 12), st.integers(1, 9))
def test_places_are_those_of_the_longest_agreement_and_of_equals_the_latest(reference, tokens, most, longest):
    """Written out by the definition."""
    whole = [*reference, SEAM, *tokens]
    own = history(tokens, reference=reference)
    found = own.find(most, longest)
    expected = []
    for place in range(len(whole) - 1):
        length = 0
        while (
            length < min(longest, len(tokens) + len(reference) + 1, place + 1)
            and whole[place - length] == whole[-1 - length] != SEAM
        ):
            length += 1
        if length:
            expected.append((-length, -place))
    got = [(-int(n), -(int(s) - 1 - 4)) for s, n in zip(found.starts, found.lengths, strict=True)]
    assert got == sorted(expected)[:most]


@given(texts, st.integers(1, 9))
def test_windows_are_what_followed_and_loops_go_round(tokens, width):
    own = history(tokens)
    found = own.find(8, 3)
    for start, window in zip(found.starts - 4, own.windows(found.starts, width), strict=True):
        loop = tokens[start:]
        assert window.tolist() == [loop[i % len(loop)] for i in range(width)]


@given(st.lists(st.lists(st.integers(0, 5), max_size=30), max_size=20), st.integers(1, 40))
def test_the_tail_is_the_end_of_the_text_however_it_came_and_whatever_was_dropped(pieces, count):
    own, text = History(64, reference=(9,) * 20), []
    for piece in pieces:
        own.extend(piece)
        text += piece
    assert own.length == len(text)
    assert own.tail(count).tolist() == text[-count:]
    assert own.last == (text[-1] if text else SEAM)


def test_memory_is_bounded_by_the_window():
    own = History(4096)
    tracemalloc.start()
    for i in range(0, 50_000, 1000):
        own.extend(range(i, i + 1000))
    (_, peak) = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < 200_000
    own.extend([49_990])
    assert len(own.find(4, 3).starts) == 1
    own.extend([7])
    assert len(own.find(4, 3).starts) == 0, "out of the window"


def test_a_seam_is_never_found():
    own = history([1, 2], reference=[SEAM + 5, 1])
    assert own.find(4, 3).starts.size == 0
    assert np.all(own.tail(9) >= 0)
