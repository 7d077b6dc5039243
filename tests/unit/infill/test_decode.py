"""Fillings: the fast forward equals the stock one, and neither batch, cache nor a restart changes a text."""

import copy

import pytest
import torch
from tinyxlnet import MASK, STOP, Gap, conditional, decoder, spec, tiny

from specserve.errors import EngineError, InvalidRequest
from specserve.filling import Filling
from specserve.infill.decode import Decoder, fill

MIXED = [
    spec((1, 2), Gap(3), (0,), Gap(2), drafter="self", seed=1),
    spec(Gap(4), (2, 1), Gap(3, exact=False), drafter="ngram", seed=2, temperature=0.7),
    spec((0,), Gap(5, exact=False), (1,), Gap(4, exact=False), (2, 2), drafter="self", seed=3, top_k=2),
    spec((2,), Gap(1), (1,), drafter="none", seed=4),
    spec((2, 0, 1), Gap(6), drafter="self", k=2, seed=5, top_p=0.8),
]


def texts(specs, **options):
    model = tiny()
    return [list(task.filling.written) for task in fill(Decoder(model, **options), specs)]


def run_round(worker, task):
    """One whole round of one task."""
    task.begin()
    while True:
        ((written,), _) = worker.step([task])
        if written is not None:
            return written


def test_the_forward_pass_equals_the_stock_one():
    """Every conditional of a filling, against perm_mask and target_mapping of `XLNetLMHeadModel`, fp64."""
    worker = decoder()
    for pieces in (((1, 2), Gap(3), (0,), Gap(2)), (Gap(2), (2,), Gap(3, exact=False), (1,))):
        task = worker.open(spec(*pieces, drafter="none"))
        while not task.filling.done:
            task.begin()
            expected = conditional(worker.model.twostream.model, task.filling)
            (laws,), _ = worker._laws([task])
            assert torch.allclose(torch.from_numpy(laws[0]), expected, atol=1e-12)
            task.answer(laws)
        worker.close(task)


def test_a_batch_and_the_cache_change_nothing():
    """The same texts alone, together, with two seats, and with every token read again in every pass."""
    alone = [texts([one])[0] for one in MIXED]
    assert texts(MIXED, seats=8) == alone
    assert texts(MIXED, seats=2) == alone
    assert texts(MIXED, seats=8, cache=False) == alone


@pytest.mark.parametrize("which", range(len(MIXED)))
def test_a_request_that_goes_on_elsewhere_writes_the_same_text(which):
    """Another decoder takes over after any round, told nothing but the tokens that are final."""
    model, wish = tiny(), MIXED[which]
    (expected,) = texts([wish])
    worker, final = Decoder(model, seats=1), []
    task = worker.open(wish)
    while not task.filling.done:
        final += run_round(worker, task).tokens
        task = Decoder(model, seats=1).open(wish, final)
        worker = Decoder(model, seats=1)
        task = worker.open(wish, final)
    assert task.filling.written == expected


def test_at_temperature_zero_every_way_writes_the_same_text():
    pieces = ((1, 2), Gap(4), (0, 2), Gap(3, exact=False), (1,))
    ways = [spec(*pieces, drafter=drafter, k=k, temperature=0) for drafter in ("none", "self", "ngram") for k in (2, 5)]
    assert len({tuple(text) for text in texts(ways, seats=8)}) == 1


def test_passes_never_outnumber_tokens_and_counts_add_up():
    specs = [copy.copy(spec((1,), Gap(9), (2,), drafter=d, k=k, seed=s)) for d in ("self", "ngram") for k in (2, 5)
             for s in range(10)]  # fmt: skip
    for task in fill(decoder(), specs):
        assert task.passes <= len(task.filling.written) == 9
        assert 0 <= task.accepted <= task.drafted


def test_the_mask_token_is_never_written_and_a_stop_only_where_it_may_be():
    specs = [spec((1,), Gap(5), (2,), Gap(3, exact=False), drafter=d, seed=s) for d in ("none", "self", "ngram")
             for s in range(20)]  # fmt: skip
    stops = 0
    for task in fill(decoder(), specs):
        tokens = [token for _, token in task.filling.written]
        assert MASK not in tokens
        assert STOP not in tokens[:5]
        assert STOP not in tokens[:-1], "nothing is written after the stop of the last gap"
        stops += tokens[-1] == STOP
        first, second = task.filling.filled()
        assert len(first) == 5
        assert STOP not in second
    assert stops > 10, "this model stops often enough to be a test"


def test_density_in_one_pass_is_the_sum_of_the_sequential_conditionals():
    for pieces in (((1, 2), Gap(3), (0,), Gap(2)), ((2,), Gap(3, exact=False), (1,), Gap(2))):
        worker = decoder()
        (task,) = fill(worker, [spec(*pieces, drafter="none", seed=6)])
        tokens = [token for _, token in task.filling.written]
        density = worker.density(worker.open(spec(*pieces)), tokens)
        expected = []
        filling = Filling(pieces, stop=STOP)
        for token in tokens:
            expected.append(float(conditional(worker.model.twostream.model, filling)[token].log()))
            filling.write([token])
        assert density == pytest.approx(expected, abs=1e-10)


def test_nothing_given_is_begun_by_the_first_token():
    """A query row that sees nothing would see everything."""
    worker = decoder()
    task = worker.open(spec(Gap(3)))
    assert task.filling.given == [(0, 0)]
    assert [place.position for place in task.filling.places] == [1, 2, 3]


@pytest.mark.parametrize(
    ("pieces", "message"),
    [
        (((1, 2),), "segments must hold a gap"),
        (((1,), Gap(16)), "segments must be at most 16 tokens, gaps included; got 17"),
    ],
)
def test_what_does_not_fit_the_model_is_refused(pieces, message):
    worker = decoder()
    with pytest.raises(InvalidRequest, match=message):
        worker.open(spec(*pieces))
    assert worker.room == 8


def test_a_model_without_a_stop_token_refuses_gaps_of_unknown_length():
    model = tiny()
    model.facts = type(model.facts)(**{f: getattr(model.facts, f) for f in ("name", "vocab_size", "context_len")})
    with pytest.raises(InvalidRequest, match="exact length"):
        Decoder(model, seats=1).open(spec((1,), Gap(2, exact=False)))


def test_logits_that_are_no_law_fail_their_request_alone():
    worker = decoder()
    tasks = [worker.open(spec((1,), Gap(2), drafter="none")) for _ in range(2)]
    for task in tasks:
        task.begin()
    forward = worker.model.twostream.forward

    def broken(*args):
        logits = forward(*args)
        logits[0] = torch.nan
        return logits

    worker.model.twostream.forward = broken
    answers, _ = worker.step(tasks)
    assert isinstance(answers[0], EngineError)
    assert len(answers[1].tokens) == 1
