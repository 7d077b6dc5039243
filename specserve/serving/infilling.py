"""Fillings: requests in, tokens out as they become final, and whatever goes wrong in between."""

from __future__ import annotations

import asyncio
import logging
import secrets
from collections.abc import AsyncGenerator, Sequence
from typing import TYPE_CHECKING

from specserve.errors import DeadlineExceeded
from specserve.filling import Filling, Place
from specserve.serving.admission import Admission
from specserve.serving.hub import Hub
from specserve.serving.line import Line
from specserve.serving.port import Port
from specserve.serving.settings import Settings
from specserve.serving.stats import Stats
from specserve.serving.validate_infill import check_infill, check_pieces
from specserve.types import (
    Fill,
    Filled,
    FilledSegment,
    FilledToken,
    Gap,
    InfillChunk,
    InfillEvent,
    InfillFacts,
    InfillFinished,
    InfillRequest,
    InfillSpec,
    InfillStarted,
    InfillUsage,
    Piece,
    TokenIds,
)

if TYPE_CHECKING:
    from tokenizers import Tokenizer

logger = logging.getLogger(__name__)

_LONG_TEXT = 16_384  # characters; tokenising more than this would hold the event loop up


class InfillRouter:
    """Serves many fillings at once; a request runs in the task of whoever reads it. Belongs to one event loop.

    The router's tokens are the truth: a worker that dies or forgets is told them again, and since its draws depend on
    seed and position alone it goes on to the same text.

    Args:
        port: how workers are reached; `pool` is its name for the any-subset models.
        facts, tokenizer: of that model.
        settings: bounds and patience.
    """

    def __init__(
        self,
        port: Port,
        pool: str,
        facts: InfillFacts,
        tokenizer: Tokenizer,
        settings: Settings = Settings(),  # noqa: B008  # frozen
    ) -> None:
        self.facts, self.settings, self.stats = facts, settings, Stats()
        self._pool, self._tokenizer = pool, tokenizer
        self._hub = Hub(port)
        self._admission = Admission(settings.max_sessions, settings.max_waiting, settings.admission_timeout_s)

    async def infill(self, request: InfillRequest) -> AsyncGenerator[InfillEvent, None]:
        """InfillStarted, InfillChunks, InfillFinished. Closing the iterator cancels the request.

        Raises:
            InvalidRequest: a bound is broken; nothing was started.
            Overloaded: no room; carries when to try again.
            DeadlineExceeded: the request's own time limit.
            Unavailable: no replica can be had.
            EngineError: the model gave something that is no law.
        """
        loop = asyncio.get_running_loop()
        limit_s = request.timeout_s if request.timeout_s is not None else self.settings.request_timeout_s
        ends_s = None if limit_s is None else loop.time() + limit_s
        check_infill(request, self.facts)
        pieces = await self._encode(request.segments)
        check_pieces(pieces, self.facts)
        request_id = request.request_id or secrets.token_hex(8)
        work = _Work(self, request_id, request, pieces)
        try:
            async with asyncio.timeout_at(ends_s):
                await self._admission.enter()
            self.stats.sessions += 1
            try:
                line = work.line(self._hub, self._pool)
                try:
                    yield InfillStarted(request_id, work.usage.given_tokens)
                    async with asyncio.timeout_at(ends_s):
                        await line.open()
                    while not work.filling.done:
                        async with asyncio.timeout_at(ends_s):
                            filled = await line.round()
                        yield work.take(filled)
                    yield work.finish()
                finally:
                    line.close()
            finally:
                self.stats.sessions -= 1
                self._admission.leave()
                self.stats.requests += 1
                work.log()
        except TimeoutError as error:
            raise DeadlineExceeded("timeout_ms ran out; allow more time or fewer tokens") from error

    async def close(self) -> None:
        """Wait until every lease and channel is given back. For the time after the last request."""
        await self._hub.close()

    async def _encode(self, segments: Sequence[str | TokenIds | Gap]) -> tuple[Piece, ...]:
        """Each text by itself: a token never reaches over a gap."""

        def encode() -> tuple[Piece, ...]:
            return tuple(tuple(self._tokenizer.encode(s).ids) if isinstance(s, str) else s for s in segments)

        if sum(len(segment) for segment in segments if isinstance(segment, str)) < _LONG_TEXT:
            return encode()
        return await asyncio.get_running_loop().run_in_executor(None, encode)

    def decode(self, ids: Sequence[int]) -> str:
        """Text of token ids."""
        text: str = self._tokenizer.decode(list(ids), skip_special_tokens=False)
        return text


class FillLine(Line[Filled]):
    """A filling's line to an any-subset model."""

    def __init__(self, hub: Hub, pool: str, work: _Work) -> None:
        router = work.router
        super().__init__(
            hub, router.settings, secrets.randbits(63), pool, "filler", Filled,
            request_id=work.request_id, stats=router.stats,
        )  # fmt: skip
        self._work = work

    async def round(self) -> Filled:
        """One round. Raises as `Line.call` does."""
        filled = await self.call(self._command)
        self._held = filled.at + len(filled.tokens)
        return filled

    def _command(self, held: int) -> Fill:
        written = tuple(token for _, token in self._work.filling.written[held:])
        return Fill(self._id, held, written, self._work.spec if held == 0 else None)


class _Work:
    """One filling under way."""

    def __init__(
        self, router: InfillRouter, request_id: str, request: InfillRequest, pieces: tuple[Piece, ...]
    ) -> None:
        facts = router.facts
        self.router, self.request_id = router, request_id
        self.spec = InfillSpec(pieces, request.sampling, request.drafter, request.draft_tokens)
        self.filling = Filling(pieces, stop=facts.stop_token_id, bos=facts.bos_token_id)
        self.usage = InfillUsage(given_tokens=sum(len(piece) for piece in pieces if isinstance(piece, tuple)))
        self._segment_of = [i for i, piece in enumerate(pieces) if isinstance(piece, Gap)]

    def line(self, hub: Hub, pool: str) -> FillLine:
        return FillLine(hub, pool, self)

    def take(self, filled: Filled) -> InfillChunk:
        """Apply one round."""
        before = self._complete()
        placed = self.filling.write(filled.tokens)
        usage = self.usage
        usage.written_tokens += len(placed)
        usage.model_passes += filled.passes
        usage.drafted_tokens += filled.drafted
        usage.accepted_tokens += filled.accepted
        tokens = tuple(self._token(place, token) for place, token in placed)
        texts = list(self.filling.filled())
        return InfillChunk(tokens, tuple(self._gap(gap, texts[gap]) for gap in range(before, self._complete())))

    def finish(self) -> InfillFinished:
        texts, segments = self.filling.filled(), list[FilledSegment]()
        for index, piece in enumerate(self.spec.pieces):
            ids = next(texts) if isinstance(piece, Gap) else piece
            segments.append(FilledSegment(index, isinstance(piece, Gap), self.router.decode(ids), ids))
        return InfillFinished(tuple(segments), self.usage)

    def log(self) -> None:
        usage = self.usage
        logger.info(
            "%s infill %s given=%d written=%d passes=%d drafted=%d accepted=%d",
            self.request_id,
            "complete" if self.filling.done else "broken off",
            usage.given_tokens,
            usage.written_tokens,
            usage.model_passes,
            usage.drafted_tokens,
            usage.accepted_tokens,
        )

    def _complete(self) -> int:
        """How many of the first gaps are complete."""
        filling = self.filling
        return filling.gaps if filling.done else filling.places[filling.next].gap

    def _token(self, place: Place, token: int) -> FilledToken:
        stop = place.may_stop and token == self.filling.stop
        return FilledToken(self._segment_of[place.gap], place.offset, token, stop)

    def _gap(self, gap: int, ids: TokenIds) -> FilledSegment:
        return FilledSegment(self._segment_of[gap], True, self.router.decode(ids), ids)
