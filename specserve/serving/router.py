"""Requests in, events out."""

from __future__ import annotations

import asyncio
import logging
import secrets
from collections.abc import AsyncGenerator
from typing import TYPE_CHECKING

from specserve.constraint import check_constraint
from specserve.errors import DeadlineExceeded, SpecserveError, Unavailable
from specserve.serving.admission import Admission
from specserve.serving.detokenize import Detokenizers
from specserve.serving.generation import Generation
from specserve.serving.hub import Hub
from specserve.serving.policy import Policy
from specserve.serving.port import Port
from specserve.serving.session import Session
from specserve.serving.settings import Settings
from specserve.serving.stats import Served, Stats
from specserve.serving.validate import check_prompt, check_request, chosen_drafters
from specserve.types import (
    DraftContext,
    Event,
    Finished,
    GenerationRequest,
    ModelFacts,
    SessionSpec,
    Speculation,
    Started,
    TokenIds,
)

if TYPE_CHECKING:
    from tokenizers import Tokenizer

logger = logging.getLogger(__name__)

_LONG_TEXT = 16_384  # characters; tokenising more than this would hold the event loop up


class Router:
    """Serves many requests, each as one task. Belongs to one event loop.

    Args:
        port: how workers are reached.
        facts: of the target model.
        tokenizer: the target's.
        settings: bounds and patience.
        stats: what is counted; read it at any time.
    """

    def __init__(
        self,
        port: Port,
        facts: ModelFacts,
        tokenizer: Tokenizer,
        settings: Settings = Settings(),  # noqa: B008  # frozen
        stats: Stats | None = None,
    ) -> None:
        self.facts, self.settings = facts, settings
        self.stats = Stats() if stats is None else stats
        self._tokenizer, self._detokenizers = tokenizer, Detokenizers(tokenizer)
        self._hub = Hub(port)
        self._admission = Admission(settings.max_sessions, settings.max_waiting, settings.admission_timeout_s)
        self._policy = Policy(
            [pool.name for pool in settings.drafters],
            settings.draft_deadline_s,
            settings.max_nodes,
            [pool.name for pool in settings.drafters if pool.copies],
        )
        self._generations: set[Generation] = set()
        self._closed = False

    async def generate(self, request: GenerationRequest) -> AsyncGenerator[Event, None]:
        """Started, Chunks, Finished. Closing the iterator cancels the request.

        Raises:
            InvalidRequest: a bound is broken; nothing was started.
            Overloaded: no room; carries when to try again.
            DeadlineExceeded: the request's own time limit, after the chunks that came in time.
            Unavailable: no verifier can be had, or the router has been closed.
            EngineError: the target gave something that cannot be verified.
        """
        loop = asyncio.get_running_loop()
        try:
            session, context, ends_s = await self._admit(request)
        except SpecserveError as error:
            self.stats.refused(type(error).__name__)
            raise
        request_id = request.request_id or secrets.token_hex(8)
        generation = self._start(request_id, session, request, context)
        alarm = loop.call_at(ends_s, generation.expire) if ends_s is not None else None
        try:
            yield Started(request_id, session.prompt_len)
            while True:
                event = await generation.mailbox.get()
                yield event
                if isinstance(event, Finished):
                    return
        finally:
            if alarm is not None:
                alarm.cancel()
            generation.cancel()

    async def close(self) -> None:
        """Refuse what waits and comes, cancel what runs, and wait until every lease and channel is given back."""
        self._closed = True
        for generation in self._generations:
            generation.cancel()
        if self._generations:
            await asyncio.wait([generation.task for generation in self._generations])
        await self._hub.close()

    def measurements(self) -> dict[str, float]:
        """What was counted, and what the policy decides by; units in the names."""
        return {**self.stats.summary(), **self._policy.summary()}

    async def _admit(self, request: GenerationRequest) -> tuple[Session, DraftContext | None, float | None]:
        """Check, tokenise and wait for a place. The session, what it may be drafted from besides, and the loop's time
        at which it must have ended."""
        check_request(request, self.facts, self.settings)
        limit_s = request.timeout_s if request.timeout_s is not None else self.settings.request_timeout_s
        try:
            async with asyncio.timeout(limit_s) as clock:
                if request.constraint is not None:  # tens of milliseconds at worst
                    await asyncio.get_running_loop().run_in_executor(None, check_constraint, request.constraint)
                prompt = await self._encode(request.prompt)
                check_prompt(prompt, request, self.facts)
                context = await self._context(request.speculation)
                session = Session(prompt, request.sampling, self.facts.eos_token_ids, self._detokenizers.new(prompt))
                await self._enter()
        except TimeoutError as error:
            raise DeadlineExceeded("timeout_ms ran out before the request was admitted") from error
        return session, context, clock.when()

    async def _context(self, wish: Speculation) -> DraftContext | None:
        reference = await self._encode(wish.reference) if wish.reference else ()
        return DraftContext(reference, wish.tenant, wish.private) if reference or wish.tenant or wish.private else None

    async def _encode(self, prompt: str | TokenIds) -> TokenIds:
        if not isinstance(prompt, str):
            return prompt
        if len(prompt) < _LONG_TEXT:
            return tuple(self._tokenizer.encode(prompt).ids)
        encoding = await asyncio.get_running_loop().run_in_executor(None, self._tokenizer.encode, prompt)
        return tuple(encoding.ids)

    async def _enter(self) -> None:
        self.stats.waiting += 1
        try:
            await self._admission.enter()
        finally:
            self.stats.waiting -= 1
        if self._closed:
            self._admission.leave()
            raise Unavailable("the router has been closed")
        self.stats.sessions += 1

    def _start(
        self, request_id: str, session: Session, request: GenerationRequest, context: DraftContext | None
    ) -> Generation:
        settings, wish = self.settings, request.speculation
        drafters = chosen_drafters(request, settings)
        depth = settings.max_draft_tokens if wish.max_draft_tokens is None else wish.max_draft_tokens
        if depth == 0:
            drafters = []
        generation = Generation(
            request_id,
            session,
            SessionSpec(
                request.sampling,
                session.prompt_len,
                session.max_len,
                wish.rule or settings.rule,
                wish.branches or 0,
                wish.max_draft_nodes or 0,
                request.constraint,
                tuple(sorted({layer for pool in drafters for layer in pool.features})),
            ),
            drafters,
            depth,
            vocab_size=self.facts.vocab_size,
            context=context,
            policy=self._policy.session(wish.mode, [pool.name for pool in drafters]),
            hub=self._hub,
            settings=settings,
            stats=self.stats,
        )
        self._generations.add(generation)
        generation.task.add_done_callback(lambda _: self._finish(generation))
        return generation

    def _finish(self, generation: Generation) -> None:
        self._generations.discard(generation)
        self._admission.leave()
        self.stats.sessions -= 1
        seconds = self.settings.clock() - generation.began_s
        self.stats.request(generation.outcome, Served(seconds, generation.first_token_s))
        usage = generation.session.usage
        logger.info(
            "%s %s prompt=%d emitted=%d rounds=%d drafted=%d accepted=%d seconds=%.3f",
            generation.request_id,
            generation.outcome,
            usage.prompt_tokens,
            usage.emitted_tokens,
            usage.rounds,
            usage.drafted_tokens,
            usage.accepted_tokens,
            seconds,
        )
