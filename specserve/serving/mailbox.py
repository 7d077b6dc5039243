"""From the round loop to one consumer. A slow consumer gets longer chunks, never a longer queue."""

from __future__ import annotations

import asyncio
from collections import deque
from dataclasses import replace

from specserve.types import Chunk, Event, Finished, Round


class Mailbox:
    """Holds at most `room` chunks and the end of the stream; what comes beyond is joined to the last chunk."""

    def __init__(self, room: int = 16) -> None:
        self._chunks: deque[Chunk] = deque()
        self._room = room
        self._end: Finished | BaseException | None = None
        self._wake: asyncio.Future[None] | None = None

    def put(self, chunk: Chunk) -> None:
        if len(self._chunks) < self._room:
            self._chunks.append(chunk)
            self._rouse()
        else:
            self._chunks[-1] = join(self._chunks[-1], chunk)

    def end(self, how: Finished | BaseException) -> None:
        """Nothing follows: the last event, or the error to raise after the chunks that wait."""
        if self._end is None:
            self._end = how
            self._rouse()

    async def get(self) -> Event:
        """The next event. Raises the error that ended the stream."""
        while not self._chunks and self._end is None:
            self._wake = asyncio.get_running_loop().create_future()
            await self._wake
        if self._chunks:
            return self._chunks.popleft()
        assert self._end is not None
        if isinstance(self._end, BaseException):
            raise self._end
        return self._end

    def _rouse(self) -> None:
        if self._wake is not None and not self._wake.done():
            self._wake.set_result(None)


def join(first: Chunk, second: Chunk) -> Chunk:
    """Two chunks as one; the rounds' times and nodes add up."""
    shift = len(first.text)
    moved = tuple(replace(token, text_end=token.text_end + shift) for token in second.tokens)
    round_, last = first.round, second.round
    if round_ is not None and last is not None:
        round_ = Round(
            round_.wall_s + last.wall_s,
            round_.forward_s + last.forward_s,
            round_.draft_s + last.draft_s,
            round_.nodes + last.nodes,
            max(round_.depth, last.depth),
            max(round_.batch, last.batch),
        )
    return Chunk(first.tokens + moved, first.text + second.text, round_)
