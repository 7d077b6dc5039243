"""A session's drafter inside its verifier: every verdict carries the draft for the round after it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

from specserve.serving.drafting import follow, sound
from specserve.serving.session import Session
from specserve.serving.settings import DrafterPool, Settings
from specserve.types import Draft


class SelfLine:
    """The same to a generation as a DraftLine, with nothing to lease, to wait for or to lose.

    A draft is asked for one call ahead: `ask` uses the one that has come, and asks for another with the next Verify.
    While nobody asks the verifier makes none. Where a verdict has none (the session has just moved, or drafts are
    taken up again) the round goes without.

    Args:
        max_depth: deepest draft the request allows.
        settled, drafted: as for DraftLine.
    """

    def __init__(
        self,
        pool: DrafterPool,
        settings: Settings,
        session: Session,
        max_depth: int,
        *,
        vocab_size: int,
        settled: Callable[[], None],
        drafted: Callable[[str, int, int, float, bool], None],
    ) -> None:
        self.name = pool.name
        self._session, self._settings, self._vocab_size = session, settings, vocab_size
        self._most = min(pool.max_tokens, max_depth)
        self._settled, self._drafted = settled, drafted
        self._wanted = True  # of the next verdict
        self._use: int | None = None  # committed length at which the draft at hand is to be verified
        self._draft: tuple[int, Draft] | None = None  # the latest, and the length it speaks about

    @property
    def next_tokens(self) -> int:
        """What the next Verify is to ask for; 0 for nothing."""
        return self._most if self._wanted else 0

    def reach(self) -> int:
        """Deepest draft that can be used or asked for now. A round begins with this."""
        self._receive()
        wanted, self._wanted = self._wanted, False
        if self._fresh is not None:
            return max(self._fresh.depths())
        return 0 if wanted else self._most

    def ask(self, depth: int, awaited: bool, price: float = 0.0) -> None:
        """Use the draft that has come, as deep as this, if awaited; and ask for the next. It was made already, at no
        price."""
        self._wanted = True
        fresh = self._fresh
        if fresh is not None and awaited:
            self._draft = len(self._session), shallow(fresh, depth)
            self._use = len(self._session)
        if awaited:
            self._settled()

    def stop_waiting(self) -> bool:
        """Nothing is ever late."""
        return False

    def take(self, at: int) -> Draft | None:
        """The draft to verify at the committed length `at`."""
        draft = self._fresh
        return draft if draft is not None and self._use == at == len(self._session) else None

    def score(self) -> tuple[int, bool] | None:
        """See DraftLine.score."""
        if self._draft is None:
            return None
        at, draft = self._draft
        verdict = follow(draft, self._session.tokens, at)
        if verdict is not None:
            self._draft = None
        return verdict

    def close(self) -> None:
        """There is nothing to give back."""

    @property
    def _fresh(self) -> Draft | None:
        """The draft at hand, while it speaks about the session's present end."""
        return self._draft[1] if self._draft is not None and self._draft[0] == len(self._session) else None

    def _receive(self) -> None:
        last = self._session.last
        if last is None or not last.draft.tokens:
            return
        draft = sound(last.draft, self.name, self._most, self._settings.max_nodes, self._vocab_size)
        if draft.tokens:
            self._draft = len(self._session), draft
            self._drafted(self.name, max(draft.depths()), len(draft), last.draft_s, False)


def shallow(draft: Draft, depth: int) -> Draft:
    """The nodes at most so deep. Exact for every rule: what is kept does not depend on any token drafted."""
    kept = [node for node, deep in enumerate(draft.depths()) if deep <= depth]
    if len(kept) == len(draft):
        return draft
    index = {node: i for i, node in enumerate(kept)}
    return replace(
        draft,
        tokens=tuple(draft.tokens[node] for node in kept),
        parents=tuple(index.get(draft.parents[node], -1) for node in kept),
        drafters=tuple(draft.drafters[node] for node in kept),
        laws=None if draft.laws is None else tuple(draft.laws[node] for node in kept),
        chains=tuple(tuple(index[node] for node in chain if node in index) for chain in draft.chains),
    )
