"""Drafting from the request's own text: what followed the last few tokens when they stood here before.

No model and no index: a numpy scan of the history finds every earlier occurrence. One row takes 0.02 ms at 2k
tokens of context and 0.05 ms at 32k, three rows twice that; a session costs 4 bytes a token.
"""

from __future__ import annotations

import time
from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from specserve.types import Close, Command, Draft, Failed, Proposal, Propose, Reply, SessionLost, merge

_RECENT = 64  # occurrences that vote on a continuation
# A short match is trusted this far per matched token, the longest looked up to any depth. On Python source half
# the drafted tokens go, and one in a hundred of the accepted ones.
_TRUST = 3


class NgramDrafter:
    """A worker's backend. The longest match wins; of its continuations the most frequent, of equals the latest.

    Deterministic: a proposal is a function of the session's tokens alone.

    Args:
        max_ngram: longest run of last tokens that is looked up; shorter ones follow, down to one token.
        rows: continuations at most in one draft. They are merged as a trie.
        max_tokens: deepest draft.
        max_sessions: sessions held; beyond, the one that has been quiet longest is forgotten.
        window: tokens of history that are searched.
    """

    def __init__(
        self,
        *,
        max_ngram: int = 3,
        rows: int = 1,
        max_tokens: int = 12,
        max_sessions: int = 1024,
        window: int = 32_768,
        name: str = "ngram",
    ) -> None:
        self._max_ngram, self._rows, self._max_tokens = max_ngram, rows, max_tokens
        self._max_sessions, self._window, self._name = max_sessions, window, name
        self._sessions: dict[int, History] = {}  # the quietest first
        self._queue: list[Propose] = []
        self._proposals = self._drafted = 0
        self._busy_s = 0.0

    def submit(self, command: Command) -> Sequence[Reply]:
        session = command.session
        if isinstance(command, Close):
            self._sessions.pop(session, None)
            self._queue = [waiting for waiting in self._queue if waiting.session != session]
            return ()
        if not isinstance(command, Propose):
            return (Failed(session, "EngineError", "a drafter cannot verify"),)
        if command.base_len == 0:
            self._sessions[session] = History(self._window)
        history = self._sessions.pop(session, None)
        if history is None:
            return (SessionLost(session, 0),)
        self._sessions[session] = history
        if history.length != command.base_len:
            return (SessionLost(session, history.length),)
        history.extend(command.tokens)
        self._queue.append(command)
        self._forget()
        return ()

    @property
    def busy(self) -> bool:
        return bool(self._queue)

    def step(self) -> Sequence[Reply]:
        began = time.perf_counter()
        queue, self._queue = self._queue, []
        drafts = [self._propose(command) for command in queue]
        seconds = time.perf_counter() - began
        self._busy_s += seconds
        return [
            Proposal(command.session, command.base_len + len(command.tokens), draft, seconds)
            for command, draft in zip(queue, drafts, strict=True)
        ]

    def stats(self) -> dict[str, float]:
        return {
            "sessions": float(len(self._sessions)),
            "tokens": float(sum(history.length for history in self._sessions.values())),
            "proposals": float(self._proposals),
            "drafted_tokens": float(self._drafted),
            "busy_s": self._busy_s,
        }

    def _propose(self, command: Propose) -> Draft:
        depth = min(command.max_tokens, self._max_tokens)
        if depth < 1:
            return Draft()
        rows = self._sessions[command.session].continuations(self._max_ngram, self._rows, depth)
        chains = [Draft.chain(row, self._name) for row in rows]
        draft = chains[0] if len(chains) == 1 else merge(chains)
        self._proposals += 1
        self._drafted += len(draft)
        return draft

    def _forget(self) -> None:
        if len(self._sessions) > self._max_sessions:
            waiting = {command.session for command in self._queue}
            quiet = next((session for session in self._sessions if session not in waiting), None)
            if quiet is not None:
                del self._sessions[quiet]


class History:
    """The last tokens of one session, at most `window` to 2 · `window` of them, and how many there are in all."""

    def __init__(self, window: int) -> None:
        self.length = 0
        self._window = window
        self._tokens: npt.NDArray[np.int32] = np.empty(256, np.int32)
        self._stored = 0

    def extend(self, tokens: Sequence[int]) -> None:
        self.length += len(tokens)
        tokens = tokens[-self._window :]
        need = self._stored + len(tokens)
        if need > 2 * self._window:
            keep = self._window - len(tokens)
            self._tokens[:keep] = self._tokens[self._stored - keep : self._stored].copy()
            self._stored, need = keep, self._window
        elif need > len(self._tokens):
            self._tokens = np.resize(self._tokens, min(2 * need, 2 * self._window))
        self._tokens[self._stored : need] = tokens
        self._stored = need

    def continuations(self, max_ngram: int, rows: int, depth: int) -> list[tuple[int, ...]]:
        """At most `rows` distinct runs of up to `depth` tokens that may come next, the best first."""
        found: list[tuple[int, ...]] = []
        matches = self._matches(max_ngram)
        for n in range(len(matches), 0, -1):
            trusted = depth if n == max_ngram else min(depth, _TRUST * n)
            for row in self._rank(matches[n - 1][-_RECENT:], rows, trusted):
                if row not in found:
                    found.append(row)
                if len(found) == rows:
                    return found
        return found

    def _matches(self, max_ngram: int) -> list[npt.NDArray[np.intp]]:
        """[n-1]: where the last n tokens also stand, as positions of what followed, ascending. Ends before the
        first n with none."""
        tokens, last = self._tokens[: self._stored], self._stored - 1
        if last < 1:
            return []
        matches: list[npt.NDArray[np.intp]] = []
        ends = np.flatnonzero(tokens[:last] == tokens[last])
        for n in range(1, max_ngram + 1):
            back = n - 1
            if back:
                ends = ends[ends >= back]
                ends = ends[tokens[ends - back] == tokens[last - back]]
            if not len(ends):
                break
            matches.append(ends + 1)
        return matches

    def _rank(self, starts: npt.NDArray[np.intp], rows: int, depth: int) -> list[tuple[int, ...]]:
        """Continuations from `starts`. One that reaches the end of the text goes on from its own beginning: a
        loop is drafted as a loop."""
        period = (self._stored - starts)[:, None]
        runs = self._tokens[starts[:, None] + np.arange(depth) % period].tolist()
        left = [tuple(run) for run in reversed(runs)]  # the latest first
        ranked: list[tuple[int, ...]] = []
        while left and len(ranked) < rows:
            row = _vote(left, depth)
            ranked.append(row)
            left = [run for run in left if run != row]
        return ranked


def _vote(runs: list[tuple[int, ...]], depth: int) -> tuple[int, ...]:
    """Token by token the most frequent among the runs that agree so far; of equals the earlier in `runs`."""
    for i in range(depth):
        if len(runs) == 1:
            break
        votes: dict[int, int] = {}
        for run in runs:
            votes[run[i]] = votes.get(run[i], 0) + 1
        if len(votes) > 1:
            best = max(votes, key=lambda token: votes[token])  # the first of equals: dicts keep their order
            runs = [run for run in runs if run[i] == best]
    return runs[0]
