"""What a fit asks for: curves, a budget, and what a configuration costs and loses."""

from typing import NamedTuple

import numpy as np

from jprune.search.curves import Curves

EPS = 1e-9


class Problem(NamedTuple):
    """What is asked for."""

    curves: Curves
    budget: dict[str, float]
    least: np.ndarray  # int64, units that each pool keeps in any case
    multiple: int


def fractions(problem: Problem, counts: np.ndarray) -> dict[str, np.ndarray]:
    """What is left of each cost of the budget at counts ``[..., pools]``."""
    shares = counts / np.maximum(problem.curves.sizes, 1)
    return {
        name: problem.curves.costs[name].at(shares)
        / problem.curves.costs[name].whole
        for name in problem.budget
    }


def least_left(curves: Curves, name: str) -> float:
    """The fraction of a cost that is left with as few units as were measured."""
    ends = np.array([counts[-1] for counts in curves.counts])
    multiple = curves.round_to
    counts = rounded(ends, curves.sizes, multiple, up=True)
    cost = curves.costs[name]
    return float(cost.at(counts / np.maximum(curves.sizes, 1)) / cost.whole)


def fits(problem: Problem, counts: np.ndarray) -> np.ndarray:
    """Which of some counts ``[..., pools]`` are within the budget."""
    fine = np.ones(counts.shape[:-1], bool)
    for name, left in fractions(problem, counts).items():
        fine &= left <= problem.budget[name] + EPS
    return fine


def rounded(
    counts: np.ndarray, sizes: np.ndarray, multiple: int, *, up: bool
) -> np.ndarray:
    """The next multiples, at least one, or all units."""
    whole = -(-counts // multiple) if up else counts // multiple
    found = np.minimum(np.maximum(whole, 1) * multiple, sizes)
    result: np.ndarray = np.where(counts >= sizes, sizes, found)
    return result


def lost_at(curves: Curves, counts: np.ndarray) -> np.ndarray:
    """The sum of the curves at counts ``[..., pools]``, which need not be whole."""
    total = np.zeros(counts.shape[:-1])
    for i, (known, losses) in enumerate(
        zip(curves.counts, curves.losses, strict=True)
    ):
        total += np.interp(
            log_of(counts[..., i]), log_of(known[::-1]), losses[::-1]
        )
    return total


def lost_each(curves: Curves, counts: np.ndarray) -> np.ndarray:
    """What each curve says of one count."""
    return np.array(
        [
            np.interp(log_of(count), log_of(known[::-1]), losses[::-1])
            for count, known, losses in zip(
                counts, curves.counts, curves.losses, strict=True
            )
        ]
    )


def log_of(counts: np.ndarray) -> np.ndarray:
    """Logarithms of counts, as if half a unit stayed where none does."""
    result: np.ndarray = np.log(np.maximum(counts, 0.5))
    return result
