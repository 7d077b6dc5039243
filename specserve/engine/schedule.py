"""Which rows go into the next forward pass."""

from __future__ import annotations

from collections.abc import Sequence


def fit(sizes: Sequence[int], limit: int, packs: bool) -> int:
    """How many of the first rows one batch of at most `limit` tokens takes; always at least one.

    Args:
        sizes: queries of each row, in order of arrival.
        packs: whether rows cost what they are; else each costs as much as the widest.
    """
    widest = total = 0
    for count, size in enumerate(sizes):
        widest, total = max(widest, size), total + size
        if count and (total if packs else widest * (count + 1)) > limit:
            return count
    return len(sizes)


class Turns:
    """Rounds and prompts take turns when both wait, so that neither starves the other."""

    def __init__(self) -> None:
        self._prompt_next = False

    def prompt(self, rounds_wait: bool, prompts_wait: bool) -> bool:
        """Whether a piece of a prompt runs now, rather than a round."""
        now = prompts_wait and (self._prompt_next or not rounds_wait)
        self._prompt_next = not now
        return now
