"""A simulated session: its rounds as in `serving.generation`, its line to the drafter as in `serving.drafting`."""

from __future__ import annotations

from typing import TYPE_CHECKING, cast

from simpy import Event, Interrupt

from specserve.planning.replica import Call, DrafterReplica, Process, RouterReplica, VerifierReplica, Worker, then

if TYPE_CHECKING:
    from specserve.planning.simulation import Simulation

_ROUND = 32  # tokens: a prompt that is no longer is verified like a round, as the engine does


class Session:
    """Holds its leases; `close` gives them back.

    Args:
        began: when the request arrived.
        prompt, tokens: how many.
    """

    def __init__(
        self,
        simulation: Simulation,
        id: int,
        router: RouterReplica,
        verifier: VerifierReplica,
        prompt: int,
        tokens: int,
        began: float,
    ) -> None:
        self._simulation, self._env, self._id = simulation, simulation.env, id
        self._router, self._verifier = router, verifier
        self._prompt, self._tokens, self._began = prompt, tokens, began
        self._drafting: Event | None = None  # the drafter's reply, until it has come
        self._lease: Event | None = None
        verifier.promised += prompt + tokens
        if simulation.drafters is not None:
            self._lease = simulation.drafters.lease()
            self._lease.callbacks.append(self._leased)

    def close(self) -> None:
        simulation, verifier = self._simulation, self._verifier
        verifier.promised -= self._prompt + self._tokens
        verifier.gone(self._id)
        simulation.verifiers.release(verifier)
        if simulation.drafters is not None and self._lease is not None:
            if self._lease.triggered:
                drafter = cast(DrafterReplica, self._lease.value)
                drafter.gone(self._id)
                simulation.drafters.release(drafter)
            else:
                simulation.drafters.give_up(self._lease)

    def rounds(self) -> Process:
        """From the prompt to the last token."""
        env, simulation, stats = self._env, self._simulation, self._simulation.stats
        positions, prompt, left = self._prompt, self._prompt > _ROUND, self._tokens
        depth, waited_s, last = 0, 0.0, self._began
        while True:
            yield self._ask(self._verifier, positions, prompt)
            now, seen = env.now, simulation.seen
            emitted = min(1 + simulation.accepted(depth), left)
            if left == self._tokens:
                seen.first_token.add(now - last)
            else:
                seen.per_token.add((now - last) / emitted, emitted)
            seen.rounds += 1
            seen.tokens += emitted
            stats.rounds += 1
            stats.wall_s += now - last
            stats.draft_s += waited_s
            left -= emitted
            if left == 0:
                return
            last = now
            depth = yield from self._draft(left - 1)
            waited_s = env.now - now
            positions, prompt = 1 + depth, False

    def _ask(self, worker: Worker, tokens: int, prompt: bool) -> Event:
        """Happens with the reply."""
        call = Call(self._id, tokens, self._env.event(), prompt)
        self._router.send(worker, call)
        return call.reply

    # Drafting.

    def _leased(self, lease: Event) -> None:
        self._drafting = self._ask(cast(DrafterReplica, lease.value), self._prompt, prompt=True)

    def _draft(self, room: int) -> Process:
        """The depth of the draft that came in time; 0 without one."""
        env, simulation = self._env, self._simulation
        if self._drafting is None or not self._drafting.processed or room < 1:
            return 0
        assert self._lease is not None
        drafter = cast(DrafterReplica, self._lease.value)
        depth = min(simulation.depth(self._verifier.sessions, drafter.sessions), room)
        if depth == 0:
            return 0
        self._drafting = reply = self._ask(drafter, depth, prompt=False)
        process = env.active_process
        assert process is not None
        deadline_s = simulation.figures.router.draft_deadline_ms / 1e3
        then(env, deadline_s, lambda: None if reply.triggered else process.interrupt())
        try:
            yield reply
        except Interrupt:
            simulation.stats.drafter("drafter").late += 1
            return 0
        return depth
