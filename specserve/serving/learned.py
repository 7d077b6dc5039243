"""Numbers that are learned as they are met: means, lines and curves. Old observations fade."""

from __future__ import annotations

import math

_FIRM = 2.0  # passes of a size that the line through all sizes is worth
_FADE = 0.995  # of the passes of a size, with every pass of whatever size
_HICCUP = 1.5  # times what was expected: a pass never counts for more


class Mean:
    """Exponentially decayed mean."""

    def __init__(self, value: float, weight: float = 0.0, keep: float = 0.95) -> None:
        self.value, self.weight, self._keep = value, weight, keep

    def observe(self, y: float, weight: float = 1.0) -> None:
        self.weight = self.weight * self._keep**weight + weight
        self.value += (y - self.value) * weight / self.weight


class Line:
    """y ≈ base + slope·x: decayed least squares, the slope drawn towards a prior where x hardly varies."""

    def __init__(self, prior_slope: float | None = None, keep: float = 0.98) -> None:
        """prior_slope: relative to the mean of y; None draws the line towards the origin."""
        self._prior, self._keep = prior_slope, keep
        self._n = self._x = self._y = self._xx = self._xy = 0.0
        self.base = self.slope = 0.0

    @property
    def known(self) -> bool:
        return self._n > 0

    def observe(self, x: float, y: float, weight: float = 1.0) -> None:
        """weight: below 1 for one of several reports of the same event."""
        if self._n > 3 and (expected := self.at(x)) > 0:
            y = min(y, 4 * expected)  # a hiccup is no cost
        keep = self._keep**weight
        self._n = self._n * keep + weight
        self._x = self._x * keep + weight * x
        self._y = self._y * keep + weight * y
        self._xx = self._xx * keep + weight * x * x
        self._xy = self._xy * keep + weight * x * y
        n = self._n
        mean_x, mean_y = self._x / n, self._y / n
        spread = self._xx / n - mean_x * mean_x
        together = self._xy / n - mean_x * mean_y
        steepest = mean_y / mean_x
        prior = steepest if self._prior is None else self._prior * mean_y
        slope = (together + prior) / (spread + 1.0)  # one unit of x² is what the prior weighs
        self.slope = min(max(slope, 0.0), steepest)
        self.base = max(mean_y - self.slope * mean_x, 0.0)

    def at(self, x: float) -> float:
        return self.base + self.slope * x


class Curve:
    """Seconds of a pass against its tokens: on most devices flat, then rising, which no one line can say.

    Sizes met are gathered by powers of √2. Their means are joined by straight lines that never fall; each is drawn
    towards the one line through everything unless it is met often, and that line also goes on beyond them.

    A pass never counts for much more than was expected, and the first one of a size, which may have to choose its
    kernels, for no more: a size that was slow once would not be tried again, and so never be found cheap.
    """

    def __init__(self) -> None:
        self.line = Line(prior_slope=0.01)
        self._sizes: dict[int, tuple[Mean, Mean]] = {}
        self._met: set[float] = set()
        self.points: list[tuple[float, float]] = []
        """(tokens, seconds) of the sizes met, ascending both ways."""

    @property
    def known(self) -> bool:
        return self.line.known

    def observe(self, tokens: float, seconds: float, weight: float = 1.0) -> None:
        first = tokens not in self._met
        self._met.add(tokens)
        if self.line.known:
            seconds = min(seconds, (1.0 if first else _HICCUP) * max(self.at(tokens), 1e-9))
        elif first:
            return
        for _, old in self._sizes.values():
            old.weight *= _FADE**weight  # what is not met any more because it was slow once is hoped for again
        self.line.observe(tokens, seconds, weight)
        group = round(2 * math.log2(max(tokens, 1.0)))
        x, y = self._sizes.setdefault(group, (Mean(tokens), Mean(seconds)))
        x.observe(tokens, weight)
        y.observe(seconds, weight)
        self._join()

    def at(self, tokens: float) -> float:
        """Expected seconds."""
        if not self.points:
            return 0.0
        x0, y0 = self.points[0]
        if tokens <= x0:
            return max(y0 - self.line.slope * (x0 - tokens), 0.0)
        for x1, y1 in self.points:
            if x0 < tokens <= x1:
                return y0 + (y1 - y0) * (tokens - x0) / (x1 - x0)
            x0, y0 = x1, y1
        return y0 + self.line.slope * (tokens - x0)

    def slope(self, tokens: float) -> float:
        """Seconds of one token more, around this size: between two thirds and one and a half of it."""
        low, high = tokens / 1.5, tokens * 1.5
        return (self.at(high) - self.at(low)) / (high - low)

    def _join(self) -> None:
        self.points.clear()
        for _, (x, y) in sorted(self._sizes.items()):
            drawn = (y.weight * y.value + _FIRM * self.line.at(x.value)) / (y.weight + _FIRM)
            x0, y0 = self.points[-1] if self.points else (0.0, 0.0)
            if x.value > x0:
                self.points.append((x.value, max(drawn, y0)))
