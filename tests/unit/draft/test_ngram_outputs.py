"""Past outputs against a slow oracle; what is dropped is gone."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from specserve.draft.ngram.history import SEAM
from specserve.draft.ngram.outputs import TOKEN_BYTES, Outputs

outputs = st.lists(st.lists(st.integers(0, 2), max_size=25), max_size=12)


def ids(tokens):
    return np.array(tokens, np.int32)


@given(outputs, st.lists(st.integers(0, 2), max_size=12), st.sampled_from([64, 4096]), st.integers(1, 6))
def test_places_are_the_latest_that_agree_in_three_tokens_or_more(given_outputs, tail, capacity, width):
    """Written out over the tokens that are still held."""
    store, text = Outputs(capacity), []
    for output in given_outputs:
        store.add(ids(output))
        text += [*output[-(capacity // 2) :], SEAM]
    text = text[-capacity:]
    windows, lengths = store.find(ids(tail), 8, width)
    expected = []
    for end in range(len(text) - 1, -1, -1):
        length = 0
        while length < min(8, len(tail), end + 1) and text[end - length] == tail[-1 - length]:
            length += 1
        if length >= 3:
            expected.append((length, (text[end + 1 :] + [SEAM] * width)[:width]))
    got = [(int(n), w.tolist()) for n, w in zip(lengths, windows, strict=True)]
    assert got == expected[:16][: len(got)]
    assert len(got) == min(len(expected), 16)


@given(outputs)
def test_no_continuation_crosses_from_one_output_into_the_next(given_outputs):
    store = Outputs(4096)
    for i, output in enumerate(given_outputs):
        store.add(ids([100 * (i + 1) + token for token in output]))
    for i, output in enumerate(given_outputs):
        windows, _ = store.find(ids([100 * (i + 1) + token for token in output[:4]]), 8, 50)
        for window in windows:
            ours = window[: window.tolist().index(SEAM)]
            assert np.all(ours // 100 == i + 1)


def test_the_oldest_go_first_and_the_bytes_stay():
    store = Outputs(1024)
    for i in range(100):
        store.add(ids(range(100 * i, 100 * i + 50)))
        assert store.nbytes <= 1024 * TOKEN_BYTES
        assert store.held <= 1024
    assert len(store.find(ids([0, 1, 2]), 8, 4)[1]) == 0
    assert store.find(ids([9900, 9901, 9902]), 8, 2)[0].tolist() == [[9903, 9904]]


@pytest.mark.parametrize("size", [1, 100, 3000, 100_000])
def test_bytes_after_adding_are_as_foretold(size):
    store = Outputs(1 << 14)
    foretold = store.nbytes_after(size)
    store.add(ids([1] * size))
    assert store.nbytes == foretold
