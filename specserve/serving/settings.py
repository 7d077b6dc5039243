"""What a router is told once."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass

from specserve.types import RULES


@dataclass(frozen=True, slots=True)
class DrafterPool:
    """A drafter as requests name it.

    Args:
        name: as in `speculation.drafters`.
        pool: the port's name of its replicas.
        max_tokens: deepest draft to ask for.
        laws: whether it can send the laws that its drafts were drawn from.
        copies: whether it drafts by copying: it is told the request's reference and tenant, and sizes its trees by
            the price of a node.
        inside: it has no replicas: verifiers draft themselves, and their verdicts carry the draft.
        features: layers of the target whose hidden states it needs with every call.
    """

    name: str
    pool: str
    max_tokens: int = 8
    laws: bool = False
    copies: bool = False
    inside: bool = False
    features: tuple[int, ...] = ()


@dataclass(frozen=True, slots=True)
class Settings:
    """Bounds and patience of one router. Times in seconds.

    Args:
        drafters: known drafters; a request that names none may get all of them, earlier ones credited first.
        rules: verification rules that requests may name.
        rule: of requests that name none.
        max_draft_tokens: deepest draft of a round for requests that name no depth.
        max_nodes: most drafted nodes sent for verification in one round of one session.
        max_sessions: served at once; further requests wait.
        max_waiting: requests that may wait; further ones are refused.
        admission_timeout_s: longest wait for admission.
        lease_timeout_s: longest wait for a replica with room.
        draft_deadline_s: a round goes on without drafts that are later.
        verify_timeout_s: a verifier that has not answered by then counts as dead.
        request_timeout_s: time limit of requests that name none; None is no limit.
        attempts: tries in a row without progress before a request fails with Unavailable.
        backoff_s, max_backoff_s: wait before a failed lease is tried again; doubles up to the maximum.
        clock: what rounds are measured with. The event loop's own time will not do: uvloop rounds it to 1 ms.
    """

    verifier_pool: str = "verifier"
    drafters: tuple[DrafterPool, ...] = ()
    rules: tuple[str, ...] = RULES
    rule: str = "coupled"
    max_draft_tokens: int = 16
    max_nodes: int = 64
    max_sessions: int = 256
    max_waiting: int = 256
    admission_timeout_s: float = 30.0
    lease_timeout_s: float = 30.0
    draft_deadline_s: float = 0.1
    verify_timeout_s: float = 120.0
    request_timeout_s: float | None = 600.0
    attempts: int = 5
    backoff_s: float = 0.05
    max_backoff_s: float = 2.0
    clock: Callable[[], float] = time.perf_counter
