"""Whatever is drafted, the text is the target's own: greedy and seeded, every strategy and the mix."""

import pytest
import torch
from ar_toys import VOCAB

from specserve.bench.ngram_play import Real, Text, play
from specserve.draft.ngram import STRATEGIES, NgramDrafter
from specserve.draft.ngram.drafter import DEFAULT_STRATEGIES
from specserve.engine import Engine, Verifier
from specserve.train.ngram import train_ngram
from specserve.types import Draft, Sampling

TOKENS = 60


@pytest.fixture(scope="module")
def verifier(small_model):
    return Verifier(Engine(small_model, slots=1200, max_nodes=64, trace=False))


@pytest.fixture(scope="module")
def table(small_model, tmp_path_factory):
    from specserve.draft.ngram.table import load_table

    file = tmp_path_factory.mktemp("table") / "t.safetensors"
    train_ngram(small_model, file, successors=4, greedy_rows=2, greedy_depth=3, report=lambda _: None)
    return load_table(file)


class Written(Real):
    """Keeps what was verified."""

    def open(self, text):
        super().open(text)
        self.output = []

    def verify(self, tokens, draft):
        verdict, seconds = super().verify(tokens, draft)
        self.output += [*(draft.tokens[node] for node in verdict.accepted), verdict.token]
        return verdict, seconds


def plain(verifier, prompt, sampling):
    from specserve.types import Close, SessionSpec, Verify

    verifier.submit(Verify(0, 0, prompt, Draft(), SessionSpec(sampling, len(prompt), len(prompt) + TOKENS + 1)))
    output = []
    while len(output) < TOKENS:
        for verdict in verifier.step():
            output.append(verdict.token)
            verifier.submit(Verify(0, len(prompt) + len(output), ()))
    verifier.submit(Close(0))
    return tuple(output)


@pytest.mark.parametrize("temperature", [0.0, 1.0])
@pytest.mark.parametrize("tuned", [False, True], ids=["whole rows", "priced"])
@pytest.mark.parametrize("strategies", [*((s,) for s in STRATEGIES), DEFAULT_STRATEGIES], ids="+".join)
def test_the_text_does_not_change(verifier, table, strategies, tuned, temperature):
    sampling = Sampling(temperature=temperature, seed=5)
    texts = []
    for start in (3, 11):
        prompt = tuple((start * i) % VOCAB for i in range(1, 9)) * 2
        texts.append(Text(prompt, plain(verifier, prompt, sampling), sampling, reference=prompt[::-1]))
    drafter = NgramDrafter(strategies=strategies, table=table, rows=4, max_tokens=5, tune=tuned)
    judge, nodes = Written(verifier), 0
    for text in (*texts, texts[0]):  # the last time past outputs hold it all
        with torch.inference_mode():
            nodes += play([text], drafter, judge, tuned=tuned).nodes
        assert tuple(judge.output[: TOKENS - 1]) == text.output[1:]
    if not tuned:
        assert nodes > 0
