"""Many fillings at once: whatever each asks for next goes into one forward pass."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch

from specserve.errors import EngineError, InvalidRequest
from specserve.filling import Cell, Filling
from specserve.infill.draws import SeededDraws
from specserve.infill.model import AnySubsetModel
from specserve.infill.rounds import Ask, Draws, Law, Query, Round, Written, ngram_draft, self_draft, sequential
from specserve.infill.twostream import Cache, Rows
from specserve.types import InfillSpec, SessionSpec
from specserve.verify.transform import process


class Task:
    """One request under way: its filling, its round, and which ranks the cache holds."""

    def __init__(self, filling: Filling, spec: InfillSpec, *, vocab: int, draws: Draws | None = None) -> None:
        self.filling, self.spec = filling, spec
        self.transform = SessionSpec(spec.sampling, 0, filling.length)
        self.passes = self.drafted = self.accepted = 0  # so far
        self.held: list[Cell] = []  # content whose keys are cached, by rank
        self.seat: int | None = None
        self._draws = SeededDraws(spec.sampling.seed) if draws is None else draws
        self._vocab = vocab
        self._round: Round | None = None
        self.ask: Ask | None = None

    def begin(self) -> None:
        """Start the next round."""
        spec, filling = self.spec, self.filling
        if spec.drafter == "self":
            self._round = self_draft(filling, self._draws, spec.draft_tokens)
        elif spec.drafter == "ngram":
            greedy = spec.sampling.temperature == 0
            self._round = ngram_draft(filling, self._draws, spec.draft_tokens, greedy=greedy, vocab=self._vocab)
        else:
            self._round = sequential(filling, self._draws)
        self.ask = next(self._round)

    def answer(self, laws: Law) -> Written | None:
        """Hand the laws of the last ask over. The round's tokens when it has ended, else None."""
        assert self._round is not None
        self.passes += 1
        try:
            self.ask = self._round.send(laws)
        except StopIteration as end:
            written: Written = end.value
            self.filling.write(written.tokens)
            self.drafted += written.drafted
            self.accepted += written.accepted
            self._round = self.ask = None
            return written
        return None


@dataclass(frozen=True, slots=True)
class Pass:
    """What one forward pass cost: seconds, rows of all sequences, padding left out."""

    seconds: float
    rows: int


class Decoder:
    """Owns the keys of at most `seats` tasks.

    Args:
        cache: whether keys are kept from pass to pass; without, every pass reads every token again.
    """

    def __init__(self, model: AnySubsetModel, *, seats: int = 16, cache: bool = True) -> None:
        self.model = model
        self._caching = cache
        like = model.twostream.model.transformer.mask_emb
        self._cache = Cache(model.config, seats, model.facts.context_len, like)
        self._free = list(range(seats))

    @property
    def room(self) -> int:
        """How many tasks can be opened now."""
        return len(self._free)

    def open(self, spec: InfillSpec, written: Sequence[int] = (), draws: Draws | None = None) -> Task:
        """A task that goes on after `written`, the tokens that are final already, in order of rank.

        Raises:
            InvalidRequest: the pieces do not fit the model.
        """
        facts = self.model.facts
        filling = Filling(spec.pieces, stop=facts.stop_token_id, bos=facts.bos_token_id)
        if not filling.places:
            raise InvalidRequest("segments", "must hold a gap", None)
        if filling.length > facts.context_len:
            raise InvalidRequest(
                "segments", f"must be at most {facts.context_len} tokens, gaps included", filling.length
            )
        if facts.stop_token_id is None and any(place.may_stop for place in filling.places):
            raise InvalidRequest("segments", "must hold gaps of exact length: this model has no stop token", None)
        filling.write(written)
        task = Task(filling, spec, vocab=facts.vocab_size, draws=draws)
        task.seat = self._free.pop(0)
        return task

    def close(self, task: Task) -> None:
        """Give the task's seat back."""
        if task.seat is not None:
            self._free = sorted([*self._free, task.seat])
            task.seat = None

    def step(self, tasks: Sequence[Task]) -> tuple[list[Written | EngineError | None], Pass]:
        """One forward pass that answers what every task asks; see `Task.answer`.

        Where the model gave no law (NaN, or nothing that may be written) the task's answer is an EngineError.
        """
        began = time.perf_counter()
        order = sorted(range(len(tasks)), key=lambda i: tasks[i].seat or 0)  # neighbours are read without a copy
        laws, rows = self._laws([tasks[i] for i in order])
        answers: list[Written | EngineError | None] = [None] * len(tasks)
        for i, law in zip(order, laws, strict=True):
            sound = bool(np.isfinite(law).all())
            answers[i] = tasks[i].answer(law) if sound else EngineError("the model gave NaN or infinity for logits")
        return answers, Pass(time.perf_counter() - began, rows)

    def density(self, task: Task, tokens: Sequence[int]) -> list[float]:
        """log p of each of `tokens`, the rest of a filling in order of rank, in one pass under the oracle mask.

        The sum is the log-density of the filling under the law that is sampled (2504.20456, section 3).
        """
        filling, place = task.filling, task.filling.next
        chain: list[tuple[int, int]] = []
        for token in tokens:
            chain.append((place, token))
            place = filling.after(place, token)
        cells = tuple((filling.places[place].position, token) for place, token in chain)
        queries = tuple(Query(place, filling.rank + i) for i, (place, _) in enumerate(chain))
        task.ask = Ask(cells, queries)
        ((law,), _) = self._laws([task])
        task.ask = None
        with np.errstate(divide="ignore"):
            return [float(np.log(row[token])) for row, (_, token) in zip(law, chain, strict=True)]

    def _laws(self, tasks: Sequence[Task]) -> tuple[list[Law], int]:
        """The laws of every task's queries, [n, V] each, and how many rows the pass had."""
        asks = [task.ask for task in tasks if task.ask is not None]
        assert len(asks) == len(tasks), "begin a round first"
        contents = [[*task.filling.content, *ask.draft] for task, ask in zip(tasks, asks, strict=True)]
        held = [self._still_held(task, content) for task, content in zip(tasks, contents, strict=True)]
        rows = self._rows(tasks, asks, contents, held)
        seats = torch.tensor([task.seat for task in tasks], device=self.model.device)
        with torch.inference_mode():
            logits = self.model.twostream(rows, self._cache, seats)
            flat = torch.cat([row[: len(ask.queries)] for row, ask in zip(logits, asks, strict=True)])
            places = [task.filling.places[q.place] for task, ask in zip(tasks, asks, strict=True) for q in ask.queries]
            may_stop = torch.tensor([place.may_stop for place in places], device=flat.device)
            transforms = [task.transform for task, ask in zip(tasks, asks, strict=True) for _ in ask.queries]
            laws = laws_of(self.model.ban(flat, may_stop), transforms)
        for task, content in zip(tasks, contents, strict=True):
            task.held = content
        counts = [len(ask.queries) for ask in asks]
        total = sum(counts) + sum(len(content) - n for content, n in zip(contents, held, strict=True))
        return np.split(laws, np.cumsum(counts)[:-1]), total

    def _still_held(self, task: Task, content: Sequence[Cell]) -> int:
        """How many of the first ranks are cached as they are now: a rejected draft's are not."""
        if not self._caching:
            return 0
        pairs = enumerate(zip(task.held, content, strict=False))
        return next((rank for rank, (old, new) in pairs if old != new), min(len(task.held), len(content)))

    def _rows(
        self, tasks: Sequence[Task], asks: Sequence[Ask], contents: Sequence[list[Cell]], held: Sequence[int]
    ) -> Rows:
        news = [content[n:] for content, n in zip(contents, held, strict=True)]
        a, q = max(map(len, news)), max(len(ask.queries) for ask in asks)
        ids = np.zeros((len(tasks), a), np.int64)
        positions = np.zeros((len(tasks), a + q), np.int64)
        seen = np.ones((len(tasks), a + q), np.int64)
        for row, (task, ask, new) in enumerate(zip(tasks, asks, news, strict=True)):
            for i, (position, token) in enumerate(new):
                rank = held[row] + i
                ids[row, i], positions[row, i] = token, position
                seen[row, i] = max(len(task.filling.given), rank + 1)
            for i, query in enumerate(ask.queries, a):
                positions[row, i] = task.filling.places[query.place].position
                seen[row, i] = query.seen
        counts = np.array([len(new) for new in news])
        device = self.model.device
        arrays = (ids, positions, seen, np.array(held), counts)
        return Rows(*(torch.from_numpy(array).to(device) for array in arrays))


def laws_of(logits: torch.Tensor, transforms: Sequence[SessionSpec]) -> Law:
    """Logits [N, V] through each row's sampling transform: the laws that are sampled, fp64 [N, V].

    A row of NaN says that its logits make no law.
    """
    processed = process(logits, transforms, [()] * len(transforms)).double()
    laws = processed.softmax(-1)
    greedy = torch.tensor([spec.sampling.temperature == 0 for spec in transforms], device=laws.device)
    if bool(greedy.any()):
        best = torch.nn.functional.one_hot(processed.argmax(-1), laws.shape[1]).to(laws)
        laws = torch.where(greedy[:, None] & laws.isfinite(), best, laws)
    out: Law = laws.cpu().numpy()
    return out


def fill(decoder: Decoder, specs: Sequence[InfillSpec]) -> list[Task]:
    """Fill several requests to the end in shared passes; as many at once as there are seats. For offline use.

    Raises:
        InvalidRequest, EngineError: as `Decoder.open` and `Decoder.step` say; the decoder is of no use afterwards.
    """
    waiting, running, done = list(enumerate(specs)), list[tuple[int, Task]](), dict[int, Task]()
    while waiting or running:
        while waiting and decoder.room:
            index, spec = waiting.pop(0)
            running.append((index, decoder.open(spec)))
            running[-1][1].begin()
        answers, _ = decoder.step([task for _, task in running])
        for (index, task), written in zip(list(running), answers, strict=True):
            if written is None:
                continue
            if isinstance(written, EngineError):
                raise written
            if task.filling.done:
                decoder.close(task)
                done[index] = task
                running.remove((index, task))
            else:
                task.begin()
    return [done[index] for index in range(len(specs))]
