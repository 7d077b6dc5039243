"""What the n-gram bench plays on: texts that the target writes, edits, and what verification costs."""

from __future__ import annotations

import random
import time
from collections.abc import Sequence
from pathlib import Path
from statistics import median

from tokenizers import Tokenizer

from specserve.bench.ngram_play import MOST_NODES, Curve, Text
from specserve.engine import Engine, Row, Verifier
from specserve.errors import EngineError
from specserve.types import Close, Draft, Sampling, SessionSpec, TokenIds, Verdict, Verify

_COMMITTED = 256
_SIZES = (1, 2, 4, 8, 12, 16, 24, 32, 48, 64, 96, 128, 192, 256)


def write(
    target: Path, prompts: Sequence[str], max_tokens: int, temperature: float, *, batch: int = 8, device: str = "cpu"
) -> list[Text]:
    """What the target writes in fp32 after each prompt, no end of sequence respected. Long prompts lose their start."""
    engine = Engine(target, device=device, slots=batch * 2048 + MOST_NODES, max_nodes=MOST_NODES)
    verifier = Verifier(engine, max_batch_tokens=4096)
    tokenizer = Tokenizer.from_file(str(target / "tokenizer.json"))
    room = min(engine.facts().context_len, 1900) - max_tokens - 32
    texts: list[Text] = []
    for start in range(0, len(prompts), batch):
        some = [tuple(tokenizer.encode(prompt).ids[-room:]) for prompt in prompts[start : start + batch]]
        samplings = [Sampling(max_tokens, temperature, seed=start + i) for i in range(len(some))]
        outputs = _write(verifier, some, samplings, max_tokens)
        texts += [Text(p, o, s) for p, o, s in zip(some, outputs, samplings, strict=True)]
    return texts


def _write(
    verifier: Verifier, prompts: Sequence[TokenIds], samplings: Sequence[Sampling], max_tokens: int
) -> list[TokenIds]:
    outputs: list[list[int]] = [[] for _ in prompts]
    for id, (prompt, sampling) in enumerate(zip(prompts, samplings, strict=True)):
        spec = SessionSpec(sampling, len(prompt), len(prompt) + max_tokens + 1)
        verifier.submit(Verify(id, 0, prompt, Draft(), spec))
    while any(len(output) < max_tokens for output in outputs):
        for reply in verifier.step():
            if not isinstance(reply, Verdict):
                raise EngineError(f"the target gave no verdict: {reply}")
            output = outputs[reply.session]
            output.append(reply.token)
            if len(output) < max_tokens:
                verifier.submit(Verify(reply.session, len(prompts[reply.session]) + len(output), ()))
    for id in range(len(prompts)):
        verifier.submit(Close(id))
    return [tuple(output) for output in outputs]


def edits(texts: Sequence[Text], every: int = 40, seed: int = 0) -> list[Text]:
    """A scripted target that repeats its prompt with one token in `every` replaced by another of the prompt."""
    draw = random.Random(seed)
    made = []
    for text in texts:
        output = [draw.choice(text.prompt) if draw.randrange(every) == 0 else token for token in text.prompt[-256:]]
        made.append(Text(text.prompt, tuple(output), text.sampling))
    return made


def referred(texts: Sequence[Text]) -> list[Text]:
    """The same outputs where the target does not see the prompt's text but drafters may copy from it."""
    return [Text(text.prompt[:1], text.output, text.sampling, text.prompt) for text in texts]


def measure_curve(engine: Engine, turns: int = 12) -> tuple[Curve, list[tuple[int, float]]]:
    """Median seconds of a pass of one session against its tokens, sizes interleaved; straight lines between them."""
    tokens = [(7 * i) % engine.facts().vocab_size for i in range(_COMMITTED)]
    engine.open(0, _COMMITTED + MOST_NODES)
    engine.forward([Row(0, tokens[:-1])])
    seconds: dict[int, list[float]] = {size: [] for size in _SIZES}
    for turn in range(-2, turns):
        for size in _SIZES:
            draft = Draft(tuple(tokens[: size - 1]), (-1,) * (size - 1), ("",) * (size - 1))
            start = time.perf_counter()
            engine.forward([Row(0, tokens[-1:], draft)])
            if turn >= 0:
                seconds[size].append(time.perf_counter() - start)
            engine.truncate(0, _COMMITTED - 1)
    engine.close(0)
    points = [(size, median(took)) for size, took in seconds.items()]

    def curve(size: int) -> float:
        x0, y0 = points[0]
        for x1, y1 in points[1:]:
            if size <= x1:
                return y0 + (y1 - y0) * (size - x0) / (x1 - x0)
            x0, y0 = x1, y1
        return y0 * size / x0

    return curve, points
