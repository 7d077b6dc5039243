"""The state of one request: its tokens and what became of every draft. Pure: no IO, no clock."""

from __future__ import annotations

from dataclasses import dataclass

from specserve.errors import VerifyError
from specserve.serving.detokenize import Detokenizer
from specserve.serving.stops import StopStrings
from specserve.types import Draft, DrafterUsage, EmittedToken, FinishReason, Origin, Sampling, TokenIds, Usage, Verdict


@dataclass(frozen=True, slots=True)
class Emission:
    """What one verdict brought. `reason` says that the session has ended, and why."""

    tokens: tuple[EmittedToken, ...]
    text: str
    reason: FinishReason | None


class Session:
    """Prompt and emitted tokens of one request. The session is the truth; what workers hold is a cache.

    How it ends, also in the middle of an accepted block (nothing after the end is emitted or counted):
      - end-of-sequence (unless `ignore_eos`) or a stop id: the token is emitted, its text is not shown;
      - a stop string: the tokens up to the one that completed it are emitted, the text ends before the string;
      - `max_tokens` emitted. A stop that coincides with it is reported as the stop.

    Args:
        prompt: token ids, at least one.
        eos_token_ids: the model's own ends.
        detokenizer: fresh, for the emitted tokens alone.
    """

    def __init__(self, prompt: TokenIds, sampling: Sampling, eos_token_ids: TokenIds, detokenizer: Detokenizer) -> None:
        self.tokens = list(prompt)
        self.prompt_len = len(prompt)
        self.max_len = len(prompt) + sampling.max_tokens
        self.usage = Usage(prompt_tokens=len(prompt))
        self.reason: FinishReason | None = None
        self.last: Verdict | None = None  # the latest that was applied
        ends = () if sampling.ignore_eos else eos_token_ids
        self._ends = frozenset((*ends, *sampling.stop_token_ids))
        self._detokenizer = detokenizer
        self._stops = StopStrings(sampling.stop)

    def __len__(self) -> int:
        return len(self.tokens)

    @property
    def room(self) -> int:
        """Deepest draft that can still be emitted whole: the verdict's own token needs one place."""
        return self.max_len - len(self.tokens) - 1

    def apply(self, verdict: Verdict, draft: Draft) -> Emission:
        """Take a verdict about `draft` in.

        Raises:
            VerifyError: it does not fit this session or this draft. The session is unchanged.
        """
        last = self._check(verdict, draft)
        self.last = verdict
        ids = [draft.tokens[node] for node in verdict.accepted]
        ids.append(verdict.token)
        own = Origin.RECOVERED if last in draft.parents else Origin.BONUS
        emitted: list[EmittedToken] = []
        text = ""
        for i, token in enumerate(ids):
            origin, drafter = own, ""
            if i < len(verdict.accepted):
                origin, drafter = Origin.ACCEPTED, draft.drafters[verdict.accepted[i]]
            text += self._take(token)
            law = verdict.logprobs[i] if verdict.logprobs else None
            emitted.append(EmittedToken(token, origin, drafter, law, len(text)))
            if self.reason is not None:
                break
        self._count(emitted, draft)
        return Emission(tuple(emitted), text, self.reason)

    def _take(self, token: int) -> str:
        """One emitted token: what becomes printable with it. Sets `reason` when it is the last."""
        self.tokens.append(token)
        text, hit = "", False
        if token in self._ends:
            self.reason = FinishReason.STOP
        else:
            text, hit = self._stops.push(self._detokenizer.push(token))
            if len(self.tokens) == self.max_len:
                self.reason = FinishReason.LENGTH
        if self.reason is not None and not hit:
            rest, hit = self._stops.push(self._detokenizer.flush())
            text += rest
            if not hit:
                text += self._stops.flush()
        if hit:
            self.reason = FinishReason.STOP
        return text

    def _count(self, emitted: list[EmittedToken], draft: Draft) -> None:
        self.usage.rounds += 1
        self.usage.emitted_tokens += len(emitted)
        drafters = self.usage.drafters
        reached = len(emitted) if self.reason is not None else len(draft) + 1
        for depth, drafter in zip(draft.depths(), draft.drafters, strict=True):
            if depth <= reached:
                drafters.setdefault(drafter, DrafterUsage()).drafted += 1
        for token in emitted:
            if token.origin is Origin.ACCEPTED:
                drafters[token.drafter].accepted += 1

    def _check(self, verdict: Verdict, draft: Draft) -> int:
        """The last accepted node, -1 for none."""
        if self.reason is not None:
            raise VerifyError("the session has ended; a verdict came after its end")
        if verdict.at != len(self.tokens):
            raise VerifyError(f"the session holds {len(self.tokens)} tokens; the verdict speaks about {verdict.at}")
        last = -1
        for node in verdict.accepted:
            if not last < node < len(draft) or draft.parents[node] != last:
                raise VerifyError(f"accepted nodes must be a path of the draft; got {verdict.accepted}")
            last = node
        if verdict.logprobs and len(verdict.logprobs) != len(verdict.accepted) + 1:
            raise VerifyError(
                f"logprobs must be one per token; got {len(verdict.logprobs)} for {len(verdict.accepted) + 1}"
            )
        return last
