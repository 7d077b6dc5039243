"""Checks of one value against its bound. Each raises InvalidRequest with the field, the bound and the value."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence, Sized

from specserve.errors import InvalidRequest


def check_size(field: str, texts: Sequence[str], most: int) -> None:
    """Bytes of UTF-8, of all together."""
    size = sum(map(len, texts))
    if size <= most:
        try:
            size = sum(len(text.encode()) for text in texts)
        except UnicodeEncodeError as error:
            raise InvalidRequest(field, "must be valid Unicode", error.object) from error
    if size > most:
        raise InvalidRequest(field, f"must be at most {most} bytes of UTF-8", size)


def check_count(field: str, values: Sized, least: int, most: int, what: str) -> None:
    if not least <= len(values) <= most:
        raise InvalidRequest(field, f"must hold {least} to {most} {what}", len(values))


def check_ids(field: str, ids: Iterable[int], vocab_size: int) -> None:
    for id in ids:
        if not 0 <= id < vocab_size:
            raise InvalidRequest(field, f"must hold ids from 0 to {vocab_size - 1}", id)


def check_int(field: str, value: int, low: int, high: int | None) -> None:
    if value < low or (high is not None and value > high):
        raise InvalidRequest(field, f"must be at least {low}" if high is None else f"must be {low} to {high}", value)


def check_number(field: str, value: float, low: float, high: float, *, above: bool = False) -> None:
    """`above` leaves `low` itself out. NaN and infinity never pass."""
    if not math.isfinite(value) or not low <= value <= high or (above and value == low):
        ends = f"above {low:g}" if above else f"at least {low:g}"
        raise InvalidRequest(
            field, f"must be finite, {ends}" + (f", at most {high:g}" if high < math.inf else ""), value
        )
