"""Bounds of a request. What breaks one is refused before anything has started."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence

from specserve.errors import InvalidRequest
from specserve.serving.bounds import check_count, check_ids, check_int, check_number, check_size
from specserve.serving.settings import DrafterPool, Settings
from specserve.types import (
    LAW_RULES,
    Constraint,
    GenerationRequest,
    ModelFacts,
    Sampling,
    Speculation,
    SpeculationMode,
    TokenIds,
)

MAX_PROMPT_BYTES = 1 << 20
MAX_STOPS, MAX_STOP_CHARS = 16, 256
MAX_LOGPROBS = 20
MAX_DRAFT_TOKENS = 64
MAX_BRANCHES = 16
MAX_TEMPERATURE = 100.0
MAX_REPETITION_PENALTY = 10.0
MAX_STOP_IDS = 64
MAX_BIASES = 1024
MAX_CONSTRAINT_BYTES = 64 << 10
MAX_CHOICES = 1024
MAX_REFERENCE_BYTES = 256 << 10
MAX_TENANT_BYTES = 128


def check_request(request: GenerationRequest, facts: ModelFacts, settings: Settings) -> None:
    """All that can be said before the prompt is tokenised. Raises InvalidRequest."""
    _check_sampling(request.sampling, facts)
    _check_speculation(request.speculation, settings)
    _check_laws(request, settings)
    if request.constraint is not None:
        _check_constraint(request.constraint, request.sampling, facts)
    if request.timeout_s is not None and not 0 < request.timeout_s < math.inf:
        raise InvalidRequest("timeout_ms", "must be a finite number above 0", request.timeout_s * 1000)
    prompt = request.prompt
    if isinstance(prompt, str):
        check_size("prompt.text", [prompt], MAX_PROMPT_BYTES)
    else:
        check_prompt(prompt, request, facts)


def check_prompt(prompt: TokenIds, request: GenerationRequest, facts: ModelFacts) -> None:
    """The prompt's tokens. Raises InvalidRequest."""
    field = "prompt.text" if isinstance(request.prompt, str) else "prompt.token_ids"
    if not prompt or request.prompt == "":  # a tokenizer may begin every text with a token of its own
        raise InvalidRequest(field, "must hold at least one token", request.prompt)
    asked = request.sampling.max_tokens
    if len(prompt) + asked > facts.context_len:
        bound = f"must be at most the context of {facts.context_len} tokens minus a prompt of {len(prompt)}"
        raise InvalidRequest("sampling.max_tokens", bound, asked)
    check_ids(field, prompt, facts.vocab_size)


def chosen_drafters(request: GenerationRequest, settings: Settings) -> list[DrafterPool]:
    """Pools that a request may draft with, in its own order."""
    wish = request.speculation
    if wish.mode is SpeculationMode.OFF:
        return []
    pools = {pool.name: pool for pool in settings.drafters}
    if wish.drafters:
        return [pools[name] for name in wish.drafters]
    if _needs_laws(request, settings):
        return [pool for pool in settings.drafters if pool.laws][:1]
    return list(settings.drafters)


def _needs_laws(request: GenerationRequest, settings: Settings) -> bool:
    rule = request.speculation.rule or settings.rule
    return rule in LAW_RULES and request.sampling.temperature > 0  # at 0 every rule is the greedy walk


def _check_laws(request: GenerationRequest, settings: Settings) -> None:
    wish = request.speculation
    if not wish.drafters or not _needs_laws(request, settings):
        return
    able = [pool.name for pool in settings.drafters if pool.laws]
    if len(wish.drafters) > 1 or wish.drafters[0] not in able:
        rule = wish.rule or settings.rule
        bound = f"must name one drafter among {_names(able)}: rule {rule!r} judges drafts by the one law they come from"
        raise InvalidRequest("speculation.drafters", bound, wish.drafters)


def _check_sampling(sampling: Sampling, facts: ModelFacts) -> None:
    check_int("sampling.max_tokens", sampling.max_tokens, 1, facts.context_len - 1)
    check_number("sampling.temperature", sampling.temperature, 0, MAX_TEMPERATURE)
    check_number("sampling.top_p", sampling.top_p, 0, 1, above=True)
    check_number("sampling.min_p", sampling.min_p, 0, 1)
    check_int("sampling.top_k", sampling.top_k, 0, None)
    check_int("sampling.seed", sampling.seed, 0, 2**63 - 1)
    check_number("sampling.presence_penalty", sampling.presence_penalty, -2, 2)
    check_number("sampling.frequency_penalty", sampling.frequency_penalty, -2, 2)
    check_number("sampling.repetition_penalty", sampling.repetition_penalty, 0, MAX_REPETITION_PENALTY, above=True)
    if sampling.logprobs is not None:
        check_int("sampling.logprobs", sampling.logprobs, 0, MAX_LOGPROBS)
    check_count("sampling.stop_token_ids", sampling.stop_token_ids, 0, MAX_STOP_IDS, "ids")
    check_ids("sampling.stop_token_ids", sampling.stop_token_ids, facts.vocab_size)
    check_count("sampling.logit_bias", sampling.logit_bias, 0, MAX_BIASES, "ids")
    check_ids("sampling.logit_bias", sampling.logit_bias, facts.vocab_size)
    for bias in sampling.logit_bias.values():
        check_number("sampling.logit_bias", bias, -100, 100)
    if len(sampling.stop) > MAX_STOPS:
        raise InvalidRequest("sampling.stop", f"must hold at most {MAX_STOPS} strings", len(sampling.stop))
    for stop in sampling.stop:
        if not 1 <= len(stop) <= MAX_STOP_CHARS:
            raise InvalidRequest("sampling.stop", f"must hold strings of 1 to {MAX_STOP_CHARS} characters", stop)


def _check_speculation(wish: Speculation, settings: Settings) -> None:
    if wish.max_draft_tokens is not None:
        check_int("speculation.max_draft_tokens", wish.max_draft_tokens, 0, MAX_DRAFT_TOKENS)
    if wish.branches is not None:
        check_int("speculation.branches", wish.branches, 1, MAX_BRANCHES)
    if wish.max_draft_nodes is not None:
        check_int("speculation.max_draft_nodes", wish.max_draft_nodes, 1, settings.max_nodes)
    check_size("speculation.reference", [wish.reference], MAX_REFERENCE_BYTES)
    check_size("speculation.tenant", [wish.tenant], MAX_TENANT_BYTES)
    if wish.reference and not any(pool.copies for pool in settings.drafters):
        bound = "must be unset: this server has no drafter that copies"
        raise InvalidRequest("speculation.reference", bound, wish.reference)
    known = [pool.name for pool in settings.drafters]
    for name in wish.drafters:
        if name not in known:
            raise InvalidRequest("speculation.drafters", f"must name drafters among {_names(known)}", name)
    if len(set(wish.drafters)) < len(wish.drafters):
        raise InvalidRequest("speculation.drafters", "must name each drafter once", wish.drafters)
    if wish.rule is not None and wish.rule not in settings.rules:
        raise InvalidRequest("speculation.rule", f"must be one of {_names(settings.rules)}", wish.rule)


def _check_constraint(constraint: Constraint, sampling: Sampling, facts: ModelFacts) -> None:
    kinds = constraint.kinds
    if len(kinds) != 1:
        bound = "must be exactly one of json_schema, regex, choice"
        raise InvalidRequest("constraint", bound, ", ".join(kinds) or None)
    field = f"constraint.{kinds[0]}"
    texts: Sequence[str] = [constraint.json_schema or constraint.regex or ""]
    if constraint.choice is not None:
        field, texts = "constraint.choice.choices", constraint.choice
        check_count(field, texts, 1, MAX_CHOICES, "strings")
    for text in texts:
        if not text:
            raise InvalidRequest(field, "must not be empty", text)
    check_size(field, texts, MAX_CONSTRAINT_BYTES)
    if not facts.eos_token_ids:
        raise InvalidRequest("constraint", "must be unset: this model has no end-of-sequence token to end it", kinds[0])
    if sampling.ignore_eos:
        bound = "must be false with a constraint: the end-of-sequence token ends its output"
        raise InvalidRequest("sampling.ignore_eos", bound, True)


def _names(known: Iterable[str]) -> str:
    return ", ".join(known) or "none (this server has none)"
