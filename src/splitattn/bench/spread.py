"""Summarizes repeated measurements."""

import statistics
from collections.abc import Sequence


def spread(values: Sequence[float]) -> dict[str, float]:
    """Median and quartiles with four decimals, for JSON.

    Args:
        values: at least two.
    """
    first, median, third = statistics.quantiles(values, n=4, method="inclusive")
    return {"median": round(median, 4), "quartile1": round(first, 4), "quartile3": round(third, 4)}
