"""Whole units, exchanged between pools as long as less is lost."""

import math

import numpy as np

from jprune.search.problem import (
    EPS,
    Problem,
    fits,
    lost_at,
    lost_each,
    rounded,
)

FEW = 20_000  # configurations that are all tried
EXCHANGES = 20  # of units, at each size of a step
TRIED = 12  # pools that may take or give in an exchange


def best_of_all(problem: Problem) -> np.ndarray | None:
    """The best configuration, where there are few; None where there are many."""
    sizes, step = problem.curves.sizes, problem.multiple
    if math.prod((1 + (sizes - problem.least) // step).tolist()) > FEW:
        return None
    tried = [
        np.unique(np.append(np.arange(low, high, step), high))
        for low, high in zip(problem.least, sizes, strict=True)
    ]
    every = np.stack(np.meshgrid(*tried, indexing="ij"), -1)
    every = every.reshape(-1, len(tried))
    every = every[fits(problem, every)]
    lost = lost_at(problem.curves, every)
    # Of those that lose equally little, the one that keeps most.
    best: np.ndarray = every[np.lexsort((-every.sum(-1), lost))[0]]
    return best


def improved(problem: Problem, logs: np.ndarray) -> np.ndarray:
    """Whole units within the budget, changed as long as less is lost."""
    sizes, multiple = problem.curves.sizes, problem.multiple
    counts = np.floor(np.exp(logs) * sizes + EPS).astype(np.int64)
    counts = rounded(counts, sizes, multiple, up=False)
    counts = np.maximum(counts, problem.least)
    if not fits(problem, counts):
        counts = problem.least.copy()
    step = np.maximum(sizes // 1000 // multiple, 1) * multiple
    for scale in (16, 8, 4, 2, 1):
        for _ in range(EXCHANGES):
            better = _exchanged(problem, counts, step * scale)
            if better is None:
                break
            counts = better
    result: np.ndarray = counts
    return result


def _exchanged(
    problem: Problem, counts: np.ndarray, step: np.ndarray
) -> np.ndarray | None:
    """Some units more in one pool, and so many fewer in another as must be."""
    curves, sizes = problem.curves, problem.curves.sizes
    pools = np.arange(len(sizes))

    def changed(move: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Counts with one pool changed, and what that loses."""
        found = np.repeat(counts[None], len(pools), 0)
        new = np.clip(counts + move, problem.least, sizes)
        found[pools, pools] = new
        return found, lost_each(curves, new) - here

    here = lost_each(curves, counts)
    more, gain = changed(step)
    price = changed(-step)[1]
    takers = np.argsort(gain, kind="stable")[:TRIED]
    payers = np.argsort(price, kind="stable")[:TRIED]
    every = [more[takers]]
    for times in (1, 2, 3, 4, 8):
        less = np.maximum(counts - times * step, problem.least)
        for payer in payers:
            paid = more[takers]
            paid[:, payer] = less[payer]
            every.append(paid[takers != payer])
    found = np.concatenate(every)
    found = found[fits(problem, found)]
    found = found[(found != counts).any(-1)]
    if not len(found):
        return None
    before, lost = here.sum(), lost_at(curves, found)
    at = int(np.argmin(lost))
    if lost[at] < before - EPS * abs(before):
        best: np.ndarray = found[at]
        return best
    # What loses nothing may stay: more units are free.
    free = found[(lost <= before) & (found >= counts).all(-1)]
    return free[0] if len(free) else None
