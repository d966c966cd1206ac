"""The counts of all pools that lose least within a budget."""

from collections.abc import Mapping
from typing import Any

import numpy as np

from jprune._core.checks import check_integer, check_number
from jprune._core.describe import describe
from jprune._core.fits import Fit
from jprune.search.curves import Curves
from jprune.search.exchanges import best_of_all, improved
from jprune.search.problem import (
    EPS,
    Problem,
    fits,
    fractions,
    lost_at,
    rounded,
)
from jprune.search.searching import scaled, searched


def fit(
    curves: Curves,
    budget: Mapping[str, float],
    *,
    floor: float = 0.3,
    round_to: int | None = None,
    seed: int = 0,
) -> Fit:
    r"""Finds how many units each pool keeps for the smallest loss within a budget.

    It minimises the sum of the curves, :math:`\sum_p L_p(n_p)`, while each cost is at
    most its fraction of the whole model's. The cost of a product depends on the pools of
    its inputs and of its outputs. The search starts from random configurations, scaled
    to meet the budget; it keeps the best, changes them by smaller and smaller steps, and
    improves the best of all unit by unit. If there are few configurations, it tries all.

    Args:
      curves: What :func:`sensitivity` returned.
      budget: The fractions in (0, 1] that may be left of ``"multiply_adds"``,
        ``"parameters"`` or ``"bytes"``, one or several at once.
      floor: Suppose that all pools kept the same share of their units within the budget:
        each pool keeps at least this fraction of that number. A curve is measured with
        all other pools whole, and is unreliable for a pool that is nearly empty.
      round_to: Pools keep a multiple of it, or all units. None: that of the structure.
      seed: Seed of the random configurations; the same seed gives the same fit.

    Returns:
      :class:`Fit`, for :func:`jprune.allocations.fitted`. ``fit.costs`` are what
      :func:`jprune.report.cost` counts for the compact model, or for the masked model
      if units are single weights.

    Raises:
      ValueError: A budget can't be met; the message gives the least that can be reached.

    Cost: under a second for 200 pools, on the host.

    >>> import numpy as np, jprune
    >>> from jprune import search
    >>> cost = search.Polynomial(np.array([60., 40.]), np.array([[0], [1]]))
    >>> tried = np.array([10, 5, 1])
    >>> curves = search.Curves(
    ...     ("a", "b"), np.array([1, 1]), np.array([10, 10]), (tried, tried),
    ...     (np.array([0., .1, .3]), np.array([0., 1., 3.])), {"parameters": cost})
    >>> search.fit(curves, {"parameters": .7}).counts  # what costs little to lose
    array([ 5, 10])
    """
    problem = _problem(curves, budget, floor, round_to)
    seed = check_integer("`fit(seed=...)`", seed, 0, static=True)
    counts = best_of_all(problem)
    if counts is None:
        start = searched(problem, np.random.default_rng(seed))
        counts = improved(problem, start)
    shares = counts / np.maximum(curves.sizes, 1)
    costs = {name: float(c.at(shares)) for name, c in curves.costs.items()}
    return Fit(
        curves.names,
        curves.numbers,
        curves.sizes,
        counts,
        costs,
        {name: x / curves.costs[name].whole for name, x in costs.items()},
        float(lost_at(curves, counts[None])[0]),
    )


def _problem(
    curves: Curves, budget: Any, floor: Any, round_to: int | None
) -> Problem:
    call = "fit"
    if not isinstance(curves, Curves):
        raise ValueError(
            f"`{call}(curves, budget)`: curves must be what `sensitivity` returned, "
            f"got {describe(curves)}."
        )
    if not isinstance(budget, Mapping) or not budget:
        raise ValueError(
            f"`{call}(curves, budget)` must be a dict from costs to fractions that "
            f'are left, as in `{{"multiply_adds": .25}}`, got {describe(budget)}.'
        )
    wanted = {}
    for name, value in budget.items():
        if name not in curves.costs:
            raise ValueError(
                f"`{call}(budget=...)`: {describe(name)} is none of the costs "
                f"{', '.join(map(repr, curves.costs))}."
            )
        number = check_number(f"`{call}(budget={{{name!r}: ...}})`", value)
        if not 0 < number <= 1:
            raise ValueError(
                f"`{call}(budget={{{name!r}: ...}})` must be the fraction that is "
                f"left, in (0, 1], got {describe(value)}."
            )
        wanted[name] = number
    share = check_number(f"`{call}(floor=...)`", floor)
    if not 0 <= share <= 1:
        raise ValueError(
            f"`{call}(floor=...)` must be a number in [0, 1], got "
            f"{describe(floor)}."
        )
    multiple = curves.round_to
    if round_to is not None:
        multiple = check_integer(
            f"`{call}(round_to=...)`", round_to, 1, static=True
        )
    ends = np.array([counts[-1] for counts in curves.counts])
    least = rounded(ends, curves.sizes, multiple, up=True)
    problem = Problem(curves, wanted, least, multiple)
    lowest = fractions(problem, least[None])
    for name, value in wanted.items():
        if lowest[name][0] > value + EPS:
            raise ValueError(
                f"`{call}(budget={{{name!r}: {value:g}}})` can't be met: with as few "
                f"units as were measured {lowest[name][0]:.4g} of it are left, "
                "which is the least that can be reached."
            )
    uniform = scaled(problem, np.zeros((1, len(ends))))[0]
    bound = np.floor(share * np.exp(uniform) * curves.sizes + EPS)
    bound = rounded(bound.astype(np.int64), curves.sizes, multiple, up=False)
    held = np.maximum(least, bound)
    # What keeps one multiple at least may be more than all the budget allows.
    if not fits(problem, held):
        held = least
    return problem._replace(least=held)
