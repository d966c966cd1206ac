"""Random configurations on the budget, changed by smaller and smaller steps."""

import numpy as np

from jprune._core.costs import Polynomial
from jprune.search.problem import (
    EPS,
    Problem,
    fits,
    log_of,
    lost_at,
    lost_each,
)

RANDOM = 400  # configurations at first
ROUNDS = 12
KEPT = 40  # of each round
PRICES = 60
BISECTIONS = 14  # to a share's thousandth; whole units are exact in the end


def scaled(problem: Problem, logs: np.ndarray) -> np.ndarray:
    """Logarithms of shares ``[n, pools]``, moved together until they fit."""
    sizes = np.maximum(problem.curves.sizes, 1)
    low = np.log(np.maximum(problem.least, 0.5) / sizes)
    least, most = low.min() - logs.max(-1), -logs.min(-1)
    for _ in range(BISECTIONS):
        middle = (least + most) / 2
        shares = np.clip(logs + middle[:, None], low, 0)
        fine = fits(problem, np.exp(shares) * sizes)
        least, most = (
            np.where(fine, middle, least),
            np.where(fine, most, middle),
        )
    result: np.ndarray = np.clip(logs + least[:, None], low, 0)
    return result


def searched(problem: Problem, rng: np.random.Generator) -> np.ndarray:
    """Logarithms of shares: the best that random changes come to."""
    pools = len(problem.curves.sizes)
    sizes = np.maximum(problem.curves.sizes, 1)
    spread = rng.uniform(0, 3, (RANDOM, 1))
    found = rng.uniform(-1, 0, (RANDOM, pools)) * spread
    found = np.concatenate([np.zeros((1, pools)), _by_slope(problem), found])
    for step in range(ROUNDS):
        found = scaled(problem, found)
        lost = lost_at(problem.curves, np.exp(found) * sizes)
        found = found[np.argsort(lost, kind="stable")[:KEPT]]
        if step < ROUNDS - 1:
            size = 0.5 * 0.7**step
            some = rng.random((RANDOM, pools)) < max(0.3, 1 / pools)
            moves = rng.normal(0, size, (RANDOM, pools)) * some
            parents = found[rng.integers(0, len(found), RANDOM)]
            found = np.concatenate([found, parents + moves])
    result: np.ndarray = found[0]
    return result


def _by_slope(problem: Problem) -> np.ndarray:
    """For many prices of a cost, the count of each pool that is worth it.

    What a unit costs depends on how much of the other pools is left: prices are worked
    out at what was chosen before, a few times.
    """
    curves = problem.curves
    sizes = np.maximum(curves.sizes, 1)
    rows = []
    for name in problem.budget:
        prices = np.geomspace(1e-4, 1e4, PRICES)
        most = lost_each(curves, problem.least)
        prices *= max(float(most[np.isfinite(most)].sum()), EPS)
        shares = np.ones((PRICES, len(sizes)))
        for _ in range(6):
            slopes = _slopes(curves.costs[name], shares)
            for i, (counts, losses) in enumerate(
                zip(curves.counts, curves.losses, strict=True)
            ):
                tried = np.linspace(counts[-1], counts[0], 60)
                lost = np.interp(
                    log_of(tried), log_of(counts[::-1]), losses[::-1]
                )
                paid = (prices * slopes[:, i])[:, None] * (tried / sizes[i])
                best = np.argmin(lost + paid, -1)
                shares[:, i] = tried[best] / sizes[i]
        rows.append(np.log(np.maximum(shares, 1e-6)))
    return np.concatenate(rows)


def _slopes(cost: Polynomial, shares: np.ndarray) -> np.ndarray:
    """What all of each pool costs, as a fraction, beside shares ``[n, pools]``."""
    found = np.zeros_like(shares)
    whole = np.concatenate([shares, np.ones((len(shares), 1))], -1)
    for place, column in enumerate(cost.pools.T):
        others = np.delete(cost.pools, place, 1)
        terms = np.prod(whole[:, others], -1) * (cost.amounts / cost.whole)
        for pool in range(shares.shape[-1]):
            found[:, pool] += terms[:, column == pool].sum(-1)
    return found
