"""What several benchmarks print: means, bytes, and how many times as fast."""

from collections.abc import Sequence
from typing import Any

import jax
import numpy as np

import jprune

SERVED = (1, 32, 256)  # rows of a call


def total_bytes(params: Any) -> int:
    """Of all parameters."""
    return sum(x.nbytes for x in jax.tree.leaves(params))


def faster(
    dense: Any, small: Any, *args: Any, rounds: int = 100
) -> list[float]:
    """How many times as fast as the dense model, both ``(fn, params)``.

    For each number of rows in `SERVED`, in calls that take turns.
    """
    models = {"dense": dense, "small": small}
    return [
        jprune.report.speed(models, *(x[:n] for x in args), rounds=rounds)[
            "small"
        ].ratio
        for n in SERVED
    ]


def mean(values: Sequence[float], digits: int = 2) -> str:
    """And its standard error."""
    if len(values) == 1:
        return f"{values[0]:.{digits}f}"
    spread = np.std(values, ddof=1) / len(values) ** 0.5
    return f"{np.mean(values):.{digits}f} +- {spread:.{digits}f}"


def gained(
    sizes: Sequence[tuple[int, int]], fast: Sequence[Sequence[float]]
) -> str:
    """Bytes before and after, and `faster`, of several networks."""
    before, after = np.mean(sizes, 0)
    ratios = ", ".join(
        f"{mean(column)} at batch {n}"
        for n, column in zip(SERVED, zip(*fast, strict=True), strict=True)
    )
    return f"{before:,.0f} -> {after:,.0f} bytes, times as fast {ratios}"
