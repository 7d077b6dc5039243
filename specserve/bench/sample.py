"""What one generation showed, however it was made: our server's or a peer's."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from statistics import median

from specserve.types import Round, TokenIds


@dataclass(frozen=True, slots=True)
class Sample:
    """One generation, seen from its client. Times in seconds from the request."""

    token_ids: TokenIds
    arrivals: tuple[float, ...]  # when each token came; tokens of one chunk share a time
    wall_s: float
    rounds: tuple[Round, ...] = ()
    accepted: tuple[int, ...] = ()  # accepted tokens of each round

    @property
    def gaps(self) -> list[float]:
        """Seconds per token after the first chunk: each chunk's wait, shared by its tokens."""
        gaps: list[float] = []
        start = 0
        for i in range(1, len(self.arrivals) + 1):
            if i == len(self.arrivals) or self.arrivals[i] != self.arrivals[start]:
                if start:
                    gaps += [(self.arrivals[start] - self.arrivals[start - 1]) / (i - start)] * (i - start)
                start = i
        return gaps


@dataclass(slots=True)
class Arm:
    """All samples of one way to generate, and the wall clock of its turns."""

    name: str
    samples: list[Sample] = field(default_factory=list)
    wall_s: float = 0.0

    @property
    def tokens_per_s(self) -> float:
        return sum(len(s.token_ids) for s in self.samples) / self.wall_s

    def figures(self) -> dict[str, float | list[float]]:
        """Tokens per second over all clients, latencies in milliseconds, and what speculation did."""
        gaps = sorted(gap for sample in self.samples for gap in sample.gaps)
        figures: dict[str, float | list[float]] = {
            "tokens_per_s": self.tokens_per_s,
            "ttft_ms_p50": 1e3 * median(s.arrivals[0] for s in self.samples),
            "ms_per_token_p50": 1e3 * quantile(gaps, 0.5),
            "ms_per_token_p95": 1e3 * quantile(gaps, 0.95),
        }
        # The first round holds the prefill: it is no measure of a round.
        rounds = [r for s in self.samples for r in s.rounds[1:]]
        if rounds:
            overheads = sorted(r.wall_s - r.forward_s for r in rounds)
            figures |= {
                "tokens_per_round": sum(len(s.token_ids) for s in self.samples)
                / sum(len(s.rounds) for s in self.samples),
                "acceptance_by_position": self._by_position(),
                "round_ms_p50": 1e3 * median(r.wall_s for r in rounds),
                "forward_ms_p50": 1e3 * median(r.forward_s for r in rounds),
                "draft_wait_ms_p50": 1e3 * median(r.draft_s for r in rounds),
                "round_overhead_ms_p50": 1e3 * quantile(overheads, 0.5),
                "round_overhead_without_drafting_ms_p50": 1e3
                * median(r.wall_s - r.forward_s - r.draft_s for r in rounds),
                "verify_batch_mean": sum(r.batch for r in rounds) / len(rounds),
            }
        return figures

    def _by_position(self) -> list[float]:
        """Share of rounds with a draft at least i deep whose i-th drafted token was accepted."""
        drafted: list[int] = []
        accepted: list[int] = []
        for sample in self.samples:
            for r, a in zip(sample.rounds, sample.accepted, strict=True):
                while len(drafted) < r.depth:
                    drafted.append(0)
                    accepted.append(0)
                for depth in range(r.depth):
                    drafted[depth] += 1
                    accepted[depth] += a > depth
        return [a / d for a, d in zip(accepted, drafted, strict=True)]


def quantile(ordered: Sequence[float], q: float) -> float:
    """Nearest-rank quantile of sorted values; NaN of none."""
    return ordered[min(len(ordered) - 1, int(q * len(ordered)))] if ordered else float("nan")
