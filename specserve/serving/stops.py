"""Stop strings in streamed text."""

from __future__ import annotations

from collections.abc import Sequence


class StopStrings:
    """Passes text on, up to the first stop string; keeps back what may be the beginning of one.

    The first string to be complete wins, and of several complete at the same character the longest. The outcome
    does not depend on how the text was cut into pieces. Work is O(new characters × strings), whatever they are
    (Knuth, Morris and Pratt).
    """

    def __init__(self, stops: Sequence[str]) -> None:
        self._stops = stops
        self._fallbacks = [_fallbacks(stop) for stop in stops]
        self._matched = [0] * len(stops)  # characters of each stop that the text ends with
        self._held = ""

    def push(self, text: str) -> tuple[str, bool]:
        """Returns what may be shown now, and whether a stop string is complete: then nothing may follow."""
        if not self._stops or not text:
            return text, False
        matched, hit = self._matched, 0
        buffer = self._held + text
        for end in range(len(self._held), len(buffer)):
            char = buffer[end]
            for i, stop in enumerate(self._stops):
                n = matched[i]
                while n and stop[n] != char:
                    n = self._fallbacks[i][n - 1]
                n += stop[n] == char
                if n == len(stop):
                    hit = max(hit, n)
                    n = 0
                matched[i] = n
            if hit:
                self._held = ""
                return buffer[: end + 1 - hit], True
        keep = max(matched)
        self._held = buffer[len(buffer) - keep :]
        return buffer[: len(buffer) - keep], False

    def flush(self) -> str:
        """What was kept back: no stop string came of it."""
        held, self._held = self._held, ""
        return held


def _fallbacks(stop: str) -> list[int]:
    """[i] is the length of the longest proper prefix of `stop` that stop[:i+1] ends with."""
    table, n = [0] * len(stop), 0
    for i in range(1, len(stop)):
        while n and stop[n] != stop[i]:
            n = table[n - 1]
        n += stop[n] == stop[i]
        table[i] = n
    return table
