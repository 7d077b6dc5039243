"""The backend of an infill replica (see serving.backend): rounds of many fillings, in shared forward passes."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from specserve.engine.schedule import Turns
from specserve.errors import EngineError, InvalidRequest, Overloaded, SpecserveError
from specserve.infill.decode import Decoder, Task
from specserve.types import Close, Command, Failed, Fill, Filled, Reply, SessionLost


@dataclass(slots=True)
class _Session:
    """One filling, and what its round under way has cost."""

    task: Task
    at: int = 0  # tokens that were final when the round began
    passes: int = 0
    drafted: int = 0
    accepted: int = 0
    forward_s: float = 0.0
    batch: int = 0

    def begin(self) -> None:
        task = self.task
        self.at, self.forward_s, self.batch = len(task.filling.written), 0.0, 0
        self.passes, self.drafted, self.accepted = task.passes, task.drafted, task.accepted
        task.begin()


class InfillBackend:
    """Sessions take a seat of the decoder each; beyond its seats they are refused as Overloaded.

    A step is one forward pass: of all sessions whose given tokens have been read, or of those that are new. The two
    take turns, since a few new tokens would have to be padded to the length of a prompt.
    """

    def __init__(self, decoder: Decoder) -> None:
        self._decoder = decoder
        self._sessions: dict[int, _Session] = {}
        self._waiting: dict[int, None] = {}  # in a round, in order of arrival
        self._turns = Turns()
        self._counts = {"tokens_seen": 0.0, "forwards": 0.0, "busy_s": 0.0}

    def submit(self, command: Command) -> Sequence[Reply]:
        id = command.session
        try:
            if isinstance(command, Close):
                self._forget(id)
                return ()
            if not isinstance(command, Fill):
                raise InvalidRequest("command", "must be Fill or Close at an any-subset model", type(command).__name__)
            return self._fill(command)
        except SpecserveError as error:
            self._forget(id)
            return (Failed(id, type(error).__name__, str(error)),)

    def step(self) -> Sequence[Reply]:
        new = [id for id in self._waiting if not self._sessions[id].task.held]
        rounds = [id for id in self._waiting if self._sessions[id].task.held]
        ids = new if self._turns.prompt(bool(rounds), bool(new)) else rounds
        sessions = [self._sessions[id] for id in ids]
        answers, cost = self._decoder.step([session.task for session in sessions])
        self._counts["tokens_seen"] += cost.rows
        self._counts["forwards"] += 1
        self._counts["busy_s"] += cost.seconds
        replies: list[Reply] = []
        for id, session, answer in zip(ids, sessions, answers, strict=True):
            session.forward_s += cost.seconds
            session.batch = max(session.batch, len(ids))
            if isinstance(answer, EngineError):
                self._forget(id)
                replies.append(Failed(id, "EngineError", f"session {id}: {answer}"))
            elif answer is not None:
                del self._waiting[id]
                task = session.task
                replies.append(
                    Filled(
                        id,
                        session.at,
                        answer.tokens,
                        task.passes - session.passes,
                        task.drafted - session.drafted,
                        task.accepted - session.accepted,
                        session.forward_s,
                        session.batch,
                    )
                )
        return replies

    @property
    def busy(self) -> bool:
        return bool(self._waiting)

    def stats(self) -> dict[str, float]:
        open_here = float(len(self._sessions))
        seats = {"slots": open_here + self._decoder.room, "slots_free": float(self._decoder.room)}
        return {"sessions": open_here, "slots_used": open_here, **seats, **self._counts}

    def _fill(self, command: Fill) -> Sequence[Reply]:
        id, session = command.session, self._sessions.get(command.session)
        if command.base_len == 0 and command.spec is not None:
            self._forget(id)
            if not self._decoder.room:
                raise Overloaded(f"all {len(self._sessions)} seats of this replica are taken")
            session = self._sessions[id] = _Session(self._decoder.open(command.spec, command.tokens))
        elif session is None or id in self._waiting or len(session.task.filling.written) != command.base_len:
            return (SessionLost(id, 0 if session is None else len(session.task.filling.written)),)
        else:
            session.task.filling.write(command.tokens)
        if session.task.filling.done:
            raise InvalidRequest("base_len", "must leave something to write", command.base_len + len(command.tokens))
        session.begin()
        self._waiting[id] = None
        return ()

    def _forget(self, id: int) -> None:
        self._waiting.pop(id, None)
        session = self._sessions.pop(id, None)
        if session is not None:
            self._decoder.close(session.task)
