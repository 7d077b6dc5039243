"""What every strategy offers to the sessions of a batch."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from specserve.draft.ngram.history import SEAM, History, Ids
from specserve.draft.ngram.memory import Tenant
from specserve.draft.ngram.outputs import SHORTEST
from specserve.draft.ngram.rows import STRATEGIES, Rows, vote
from specserve.draft.ngram.successors import walk
from specserve.draft.ngram.table import Table, with_seam

_VOTES = 16  # places in a text that vote on its rows, those with the longest agreement
_LONGEST = 32  # agreement beyond is not looked at
_WALKED = 8  # depth to which tables are walked: beyond, hardly anything is accepted
_SUFFIX_ROWS = 3
_TIERS = np.array([-1, *(min(max(n, SHORTEST).bit_length() - 2, 3) for n in range(1, _LONGEST + 1))])  # of agreement
_GRADES = np.searchsorted([5, 13, 26, 51, 90, 140, 200], np.arange(256), side="right")  # chance in 255ths -> evidence


class Offers:
    """Makes the rows of a batch.

    Args:
        strategies: those that take part, of STRATEGIES; bigram and unigram need a table.
        rows: most rows of one strategy.
        context_rows: most rows of the context strategy.
        max_ngram: agreement that the context strategy looks at, in tokens; suffix rows need more, or 3 in past outputs.
        width: tokens of a row.
    """

    def __init__(
        self, strategies: Sequence[str], rows: int, context_rows: int, max_ngram: int, width: int, table: Table | None
    ) -> None:
        self._max_ngram, self._width, self._table = max_ngram, width, table
        caps = {"context": min(rows, context_rows), "suffix": min(rows, _SUFFIX_ROWS)}
        counts = {name: caps.get(name, rows) if name in strategies else 0 for name in STRATEGIES}
        if table is None:
            counts["bigram"] = counts["unigram"] = 0
        else:
            self._successors, self._grades = (
                with_seam(table.successors),
                with_seam(_GRADES[table.chances].astype(np.int32)),
            )
            self._greedy = None if table.greedy is None else with_seam(table.greedy)
            counts["bigram"] = min(counts["bigram"], table.successors.shape[1])
            counts["unigram"] = min(counts["unigram"], len(table.unigrams))
        counts["recycled"] = min(counts["recycled"], 2)
        ends = np.cumsum([counts[name] for name in STRATEGIES])
        self._part = {name: slice(end - counts[name], end) for name, end in zip(STRATEGIES, ends, strict=True)}
        self._count = counts
        self.strategy = np.repeat(np.arange(len(STRATEGIES)), [counts[name] for name in STRATEGIES])

    def rows(self, histories: Sequence[History], tenants: Sequence[Tenant | None]) -> Rows:
        """Rows for S sessions. A tenant is what its session may copy past outputs of; None for nobody's."""
        out = Rows.none(len(histories), self._width, self.strategy)
        if self._count["context"] or self._count["suffix"]:
            self._copy(out, histories, tenants)
        roots = np.array([history.last for history in histories], np.int32)
        if self._count["bigram"]:
            self._walk_table(out, roots)
        if self._count["recycled"]:
            self._recycle(out, roots, tenants)
        if self._count["unigram"]:
            self._start_anywhere(out)
        return out

    def _copy(self, out: Rows, histories: Sequence[History], tenants: Sequence[Tenant | None]) -> None:
        s, width, suffix = len(histories), self._width, self._count["suffix"] > 0
        names = ("context", "suffix") if suffix else ("context",)
        windows = np.full((len(names), s, _VOTES, width), SEAM, np.int32)
        starts, lengths = np.zeros((s, _VOTES), np.int64), np.zeros((len(names), s, _VOTES), np.int64)
        longest = _LONGEST if suffix else self._max_ngram
        for i, (history, tenant) in enumerate(zip(histories, tenants, strict=True)):
            found = history.find(_VOTES, longest)
            n, past = len(found.starts), 0
            if n:
                windows[0, i, :n] = history.windows(found.starts, width)
                starts[i, :n], lengths[0, i, :n] = found
            if suffix and tenant is not None:
                theirs, agreed = tenant.outputs.find(history.tail(_LONGEST), _LONGEST, width)
                past = min(len(agreed), _VOTES // 2)
                windows[1, i, :past], lengths[1, i, :past] = theirs[:past], agreed[:past]
            if suffix and n:
                long = min(int((found.lengths > self._max_ngram).sum()), _VOTES - past)
                windows[1, i, past : past + long] = windows[0, i, :long]
                lengths[1, i, past : past + long] = found.lengths[:long]
        tier = np.minimum(lengths, self._max_ngram) - 1
        if suffix:
            tier[1] = _TIERS[lengths[1]]
        latest = np.argsort(-(tier[0] * (1 << 40) + starts), axis=1)  # agreement beyond max_ngram is the suffix's
        windows[0] = np.take_along_axis(windows[0], latest[:, :, None], 1)
        tier[0] = np.take_along_axis(tier[0], latest, 1)
        most = max(self._count["context"], self._count["suffix"])
        tokens, evidence = vote(windows.reshape(-1, _VOTES, width), tier.reshape(-1, _VOTES), most)
        for place, name in enumerate(names):
            part, mine = self._part[name], slice(place * s, place * s + s)
            out.tokens[:, part] = tokens[mine, : self._count[name]]
            out.evidence[:, part] = evidence[mine, : self._count[name]]

    def _walk_table(self, out: Rows, roots: Ids) -> None:
        part, depth = self._part["bigram"], min(self._width, _WALKED)
        tokens = walk(self._successors, roots, self._count["bigram"], depth, self._greedy)
        out.tokens[:, part, :depth] = tokens
        known = np.where(roots < len(self._grades) - 1, roots, -1)
        out.evidence[:, part, 0] = np.maximum(self._grades[known, : self._count["bigram"]], 0)
        out.evidence[:, part, 1:depth] = np.maximum(self._grades[tokens[:, :, :-1], 0], 0)

    def _recycle(self, out: Rows, roots: Ids, tenants: Sequence[Tenant | None]) -> None:
        part, depth, count = self._part["recycled"], min(self._width, _WALKED), self._count["recycled"]
        for tenant in {id(tenant): tenant for tenant in tenants if tenant is not None}.values():
            mine = [i for i, other in enumerate(tenants) if other is tenant]
            out.tokens[mine, part, :depth] = walk(tenant.recycled.table, roots[mine], count, depth)
        out.evidence[:, part] = np.arange(count)[:, None]

    def _start_anywhere(self, out: Rows) -> None:
        assert self._table is not None
        part, depth, count = self._part["unigram"], min(self._width, _WALKED), self._count["unigram"]
        tokens = self._table.unigrams[:count]
        for d in range(depth):
            out.tokens[:, part, d] = tokens
            tokens = self._successors[tokens, 0]
        out.evidence[:, part] = np.minimum(np.arange(count), 3)[:, None]
