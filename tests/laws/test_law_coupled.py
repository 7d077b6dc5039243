"""What `coupled` promises beyond the law: a text is a function of (target, prompt, seed). And greedy is greedy."""

import pytest
import torch
from simulation import Drafter, branches, chains, coupled_trees, generate, point_masses, two_drafters

from specserve.types import Draft, Sampling, SessionSpec
from specserve.verify import RULES, Prefix, sample

TARGET = torch.randn(3, 3, generator=torch.Generator().manual_seed(1))
GOOD = Drafter(TARGET + 0.3 * torch.randn(3, 3, generator=torch.Generator().manual_seed(2)), 2, 3)
BAD = Drafter(-2 * TARGET, 3, 2)
FAMILIES = (chains, branches, coupled_trees, point_masses, two_drafters)
SEEDS = range(120)


def undrafted(drafter, specs, histories):
    return [Draft() for _ in specs]


def plain(sampling: dict, seeds) -> list[list[int]]:
    """The oracle: one token at a time, one session at a time."""
    texts = []
    for seed in seeds:
        spec, text = SessionSpec(Sampling(seed=seed, **sampling), 1, 99), [0]
        while len(text) < 4:
            text.append(int(sample(TARGET[text[-1:]], [spec], [Prefix(text)])))
        texts.append(text[1:])
    return texts


@pytest.mark.parametrize(
    "sampling",
    [{"temperature": 1.0}, {"temperature": 0.6, "top_k": 2}, {"temperature": 1.5, "frequency_penalty": 0.9}],
)
def test_the_same_seed_gives_the_same_text_whatever_was_drafted(sampling):
    """Any drafter, any tree, no drafts at all, any batch."""
    want = plain(sampling, SEEDS)
    assert len({tuple(t) for t in want}) > 5
    assert generate(TARGET, GOOD, undrafted, "coupled", sampling, SEEDS)[0] == want
    for family in FAMILIES:
        for drafter in (GOOD, BAD):
            assert generate(TARGET, drafter, family, "coupled", sampling, SEEDS)[0] == want
    alone = [generate(TARGET, GOOD, coupled_trees, "coupled", sampling, [s])[0][0] for s in list(SEEDS)[:10]]
    assert alone == want[:10]


@pytest.mark.parametrize("rule", RULES)
@pytest.mark.parametrize("penalty", [0.0, 1.5])
def test_at_temperature_0_every_rule_is_greedy_decoding(rule, penalty):
    """Token for token, with drafts good and bad, with laws and without."""
    sampling = {"temperature": 0.0, "frequency_penalty": penalty}
    want = plain(sampling, range(3))
    for family in (undrafted, *FAMILIES):
        for drafter in (GOOD, BAD):
            assert generate(TARGET, drafter, family, rule, sampling, range(3))[0] == want


def test_shared_noise_makes_better_drafts_than_independent_draws():
    """Otherwise sharing the noise would be for nothing: accepted per round, 2 drafts of one position."""
    shared = generate(TARGET, GOOD, coupled_trees, "coupled", {"temperature": 1.0}, range(600))[1]
    independent = generate(TARGET, GOOD, chains, "coupled", {"temperature": 1.0}, range(600))[1]
    assert shared > independent + 0.2
