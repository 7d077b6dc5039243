"""What clients of a simulation saw."""

from __future__ import annotations

from dataclasses import dataclass, field, fields

from specserve.planning.spread import Spread


@dataclass(slots=True)
class Seen:
    """Over a stretch of time. Times in seconds; `per_token` is after the first round, whose tokens share its time."""

    requests: int = 0
    refused: int = 0
    tokens: int = 0
    rounds: int = 0
    first_token: Spread = field(default_factory=Spread)
    request: Spread = field(default_factory=Spread)
    per_token: Spread = field(default_factory=Spread)

    def __iadd__(self, later: Seen) -> Seen:
        for part in fields(self):
            value = getattr(self, part.name)
            value += getattr(later, part.name)
            setattr(self, part.name, value)
        return self

    def figures(self, seconds: float) -> dict[str, float]:
        """Flat, units in the names."""
        figures = {
            "requests": float(self.requests),
            "refused": float(self.refused),
            "requests_per_s": self.requests / seconds,
            "tokens_per_s": self.tokens / seconds,
            "tokens_per_round": self.tokens / self.rounds if self.rounds else 0.0,
        }
        for name, spread, scale in (
            ("ttft_ms", self.first_token, 1e3),
            ("ms_per_token", self.per_token, 1e3),
            ("request_s", self.request, 1.0),
        ):
            figures |= {f"{name}_p{int(100 * q)}": scale * spread.quantile(q) for q in (0.5, 0.95, 0.99)}
        return figures
