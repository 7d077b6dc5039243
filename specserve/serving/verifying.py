"""A session's line to the verifier. It can lose the session or die; the session is rebuilt and goes on."""

from __future__ import annotations

from specserve.serving.hub import Hub
from specserve.serving.line import Line
from specserve.serving.session import Session
from specserve.serving.settings import Settings
from specserve.serving.stats import Stats
from specserve.types import Draft, SessionSpec, Verdict, Verify


class VerifyLine(Line[Verdict]):
    """Whatever replica answers, the committed tokens and the seed make the verdict the same."""

    def __init__(
        self,
        hub: Hub,
        settings: Settings,
        id: int,
        session: Session,
        spec: SessionSpec,
        *,
        request_id: str,
        stats: Stats,
    ) -> None:
        super().__init__(
            hub, settings, id, settings.verifier_pool, "verifier", Verdict, request_id=request_id, stats=stats
        )
        self._session, self._spec = session, spec
        self._clock = settings.clock
        self.sent = 0  # committed tokens that went with the last call; a session under way sends none
        self.sent_s = 0.0  # when that was

    @property
    def reach(self) -> int | None:
        """Deepest draft this replica takes; None where it sets no bound."""
        return self._hold.grant.max_draft_tokens or None if self._hold is not None else None

    async def verify(self, draft: Draft, next_tokens: int = 0) -> Verdict:
        """The verdict on `draft`, with another so deep where the verifier can draft. Raises as `Line.call` does."""

        def command(held: int) -> Verify:
            tokens = self._session.tokens
            self.sent, self.sent_s = len(tokens) - held, self._clock()
            spec = self._spec if held == 0 else None
            return Verify(self._id, held, tuple(tokens[held:]), draft, spec, next_tokens)

        verdict = await self.call(command)
        self._held = verdict.at + len(verdict.accepted) + 1
        return verdict
