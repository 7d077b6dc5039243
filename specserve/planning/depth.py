"""How deep to draft: what earns most tokens per second, nothing included. The rule of `serving.policy`, all known.

    E(k) / (verify(b · (1 + k)) + draft(k, d) + calls),  E(k) = 1 + S(1) + … + S(k)

for b sessions on the verifier and d on the drafter.
"""

from __future__ import annotations

from specserve.planning.figures import Drafter, Router, Target

_GAIN = 1.02  # as in serving.policy


class Depths:
    """Remembers what it has worked out."""

    def __init__(self, target: Target, drafter: Drafter, router: Router) -> None:
        self._target, self._drafter, self._router = target, drafter, router
        self._survival = drafter.survival
        self._best: dict[tuple[int, int], int] = {}

    def best(self, verifying: int, drafting: int) -> int:
        """Depth when so many sessions share the verifier and so many the drafter."""
        if self._drafter.depth is not None:
            return self._drafter.depth
        key = (verifying, drafting)
        if key not in self._best:
            self._best[key] = self._work_out(verifying, drafting)
        return self._best[key]

    def _work_out(self, b: int, d: int) -> int:
        target, drafter = self._target, self._drafter
        best, expected = 0, 1.0
        value = _GAIN / (target.pass_ms(b, b) + self._router.call_ms)
        for k, kept in enumerate(self._survival, 1):
            expected += kept
            verify_ms = target.pass_ms(b, b * (1 + k)) + self._router.call_ms
            draft_ms = drafter.call_ms + k * (drafter.step_ms + drafter.token_ms * d) + self._router.call_ms
            if expected / (verify_ms + draft_ms) > value:
                best, value = k, expected / (verify_ms + draft_ms)
        return best
