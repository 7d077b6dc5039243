"""What a rule is given for one session, and what it answers."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from torch import Tensor

from specserve.types import Draft, SessionSpec, TokenIds, TokenLogprobs
from specserve.verify.transform import Prefix


@dataclass(frozen=True, slots=True)
class Case:
    """One session's round: committed tokens (`spec.prompt_len` of them prompt) and the draft that hangs on the last.

    `masks`, for constrained output, says which tokens the grammar allows at each row, [rows, m] bytes on the CPU: bit
    v % 8 (the lowest first) of byte v // 8 stands for token v; m·8 is at least V.
    """

    spec: SessionSpec
    tokens: Sequence[int]
    draft: Draft
    masks: Tensor | None = None

    @property
    def rows(self) -> int:
        """Rows of logits: one after the last committed token, one after each node."""
        return 1 + len(self.draft.tokens)

    def prefix(self, node: int) -> Prefix:
        """What stands before the position that the row of a node is the law of; node -1 is the last committed token."""
        return Prefix(self.tokens, tuple(self.draft.tokens[i] for i in self.draft.path(node)))

    def prefixes(self) -> list[Prefix]:
        """The prefix of every row."""
        found = [Prefix(self.tokens)]
        for parent, token in zip(self.draft.parents, self.draft.tokens, strict=True):
            found.append(Prefix(self.tokens, (*found[parent + 1].drafted, token)))
        return found


@dataclass(frozen=True, slots=True)
class Outcome:
    """Accepted path (node indices, root to leaf) and one more token of the target's own.

    `logprobs` has one entry per emitted token where asked for. `fault` says why the case could not be decided
    (its logits are not finite); then there is no token and `token` is -1. Other cases of the batch are not touched.
    """

    accepted: TokenIds
    token: int
    logprobs: tuple[TokenLogprobs, ...] = ()
    fault: str | None = None


Rule = Callable[[Tensor, Sequence[Case], Sequence[int]], list[Outcome]]
"""(logits [R, V], cases, first row of each case) -> one outcome per case. Row first + 1 + j is the law after node j."""
