"""Exact laws of fillings: every round is run on every outcome of every draw, over a tiny random XLNet in fp64."""

import sys
from pathlib import Path

from enumeration import Choices

sys.path.append(str(Path(__file__).parents[1] / "unit" / "infill"))
from tinyxlnet import MASK, STOP, Gap, conditional, decoder, spec

from specserve.filling import Filling

Tokens = tuple[int, ...]
GAPS = {
    "four gaps": ((1,), Gap(1), (0,), Gap(1), (2,), Gap(1), (1,), Gap(1)),
    "one gap": ((1, 0), Gap(4), (2,)),
    "stops": ((1,), Gap(2, exact=False), (0,), Gap(2, exact=False), (2,)),
}
V = 3  # words; the mask token is banned, the stop token where a gap is exact


class Enumerated(Choices):
    """Draws whose outcomes are all taken, one after the other."""

    def draw(self, laws, positions, purpose):
        return [self.choose(law.tolist()) for law in laws]

    def coin(self, probability, position):
        return super().coin(probability)


def joint(pieces) -> dict[Tokens, float]:
    """The model's joint law of the written tokens, by the stock forward pass, one conditional after the other."""
    model = decoder().model.twostream.model

    def go(written: Tokens) -> dict[Tokens, float]:
        filling = Filling(pieces, stop=STOP)
        filling.write(written)
        if filling.done:
            return {written: 1.0}
        law, found = conditional(model, filling), {}
        for token, p in enumerate(law.tolist()):
            if p > 0:
                found.update({tokens: p * weight for tokens, weight in go((*written, token)).items()})
        return found

    return go(())


class Law:
    """What a drafter writes: the joint law, and the most passes that any path took beyond its tokens."""

    def __init__(self, pieces, drafter: str, k: int) -> None:
        self._decoder, self._spec = decoder(), spec(*pieces, drafter=drafter, k=k)
        self._answers: dict = {}
        self._known: dict[Tokens, dict[Tokens, float]] = {}
        self.excess, self.passes = -99, 0.0
        self.joint = self._after(())

    def _after(self, written: Tokens) -> dict[Tokens, float]:
        if written in self._known:
            return self._known[written]
        found: dict[Tokens, float] = {}
        done = Filling(self._spec.pieces, stop=STOP)
        done.write(written)
        if done.done:
            return {written: 1.0}
        for tokens, weight in self._round(written).items():
            for whole, rest in self._after((*written, *tokens)).items():
                found[whole] = found.get(whole, 0.0) + weight * rest
        self._known[written] = found
        return found

    def _round(self, written: Tokens) -> dict[Tokens, float]:
        found: dict[Tokens, float] = {}
        draws = Enumerated()
        while True:
            task = self._decoder.open(self._spec, written, draws)
            task.begin()
            answer = None
            while answer is None:
                answer = task.answer(self._laws(task))
            self.excess = max(self.excess, task.passes - len(answer.tokens))
            found[answer.tokens] = found.get(answer.tokens, 0.0) + draws.weight
            self._decoder.close(task)
            if not draws.next():
                return found

    def _laws(self, task):
        key = (tuple(task.filling.written), task.ask)
        if key not in self._answers:
            ((self._answers[key],), _) = self._decoder._laws([task])
        return self._answers[key]


def error(pieces, drafter: str, k: int) -> float:
    """Largest difference between the written law and the model's."""
    truth, law = joint(pieces), Law(pieces, drafter, k).joint
    return max(abs(truth.get(tokens, 0.0) - law.get(tokens, 0.0)) for tokens in {*truth, *law})


__all__ = ["GAPS", "MASK", "STOP", "Law", "error", "joint"]
