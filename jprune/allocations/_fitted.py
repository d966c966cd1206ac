"""Counts that a search found, and the way to them."""

from typing import Any

import numpy as np

from jprune._core import counts as _counts
from jprune._core.calls import recorded
from jprune._core.describe import describe
from jprune._core.fits import Fit
from jprune.allocations._base import Allocation, Pools
from jprune.allocations._divisor import divide_along
from jprune.selection.plan import split_entries

_STEPS = 256  # of the way from all units to the fit's


@recorded
def fitted(fit: Fit) -> Allocation:
    r"""Keeps in each pool the number of units that :func:`jprune.search.fit` found.

    At ``fit.sparsity`` each pool keeps exactly ``fit.counts``. At lower sparsities, a
    pool of :math:`N_p` units for which the fit keeps :math:`n_p` keeps

    .. math:: N_p^{1-a} n_p^a, \qquad 0 \le a \le 1,

    rounded so that the total is exact and no pool's count rises with the sparsity. So
    pruned units stay pruned under a schedule that rises to ``fit.sparsity``.

    Args:
      fit: What :func:`jprune.search.fit` returned.

    Returns:
      An :class:`Allocation`. It refuses a number above ``fit.sparsity``; a schedule or
      a traced number above it gives the counts of the fit.

    Raises:
      ValueError: Here if ``fit`` is not a fit; when used, if the pools are not those
        of the fit.

    References:
      The rounding is that of :func:`erdos_renyi`.

    >>> import jax.numpy as jnp, jprune
    >>> import numpy as np
    >>> from jprune import search
    >>> fit = search.Fit(("a", "b"), np.array([1, 1]), np.array([8, 8]),
    ...                  np.array([6, 2]), {}, {}, 0.)
    >>> params = {"a": jnp.arange(8.).reshape(2, 4), "b": jnp.arange(8.).reshape(2, 4)}
    >>> fitted = jprune.allocations.fitted(fit)
    >>> for sparsity in (.25, fit.sparsity):
    ...     masks = jprune.find_masks(params, sparsity, allocation=fitted)
    ...     print(int(masks["a"].sum()), int(masks["b"].sum()))
    7 5
    6 2
    """
    if not isinstance(fit, Fit):
        raise ValueError(
            "`fitted(fit)` must be what `jprune.search.fit(curves, budget)` "
            f"returned, got {describe(fit)}."
        )
    rows = np.repeat(fit.sizes, fit.numbers)
    path = _path(rows, np.repeat(fit.counts, fit.numbers))

    def counts(pools: Pools, sparsity: Any) -> Any:
        _check_pools(fit, pools)
        total = _counts.left_of(sparsity, rows.sum())
        found = divide_along(path, total)
        if isinstance(found, np.ndarray):
            return np.split(found, np.cumsum(pools.numbers)[:-1])
        return split_entries(found, pools.numbers)

    return Allocation(counts, most=fit.sparsity)


def _path(sizes: np.ndarray, counts: np.ndarray) -> np.ndarray:
    """int64 ``[steps + 1, pools]``, from all units to the fit's, by even ratios."""
    way = np.arange(_STEPS + 1)[:, None] / _STEPS
    # As if half a unit stayed where none does: a ratio of 0 has no powers.
    ratio = np.maximum(counts, 0.5) / np.maximum(sizes, 0.5)
    found = np.floor(sizes * ratio**way + 0.5).astype(np.int64)
    found = np.clip(found, counts, sizes)
    found[0], found[-1] = sizes, counts
    path: np.ndarray = found
    return path


def _check_pools(fit: Fit, pools: Pools) -> None:
    """Refuses pools that are not those of the fit."""
    if not len(pools.sizes):
        return  # a part of `optax.partition` that got nothing
    for i, (number, size) in enumerate(
        zip(pools.numbers.tolist(), pools.sizes.tolist(), strict=True)
    ):
        known = i < len(fit.sizes)
        if known and (fit.numbers[i], fit.sizes[i]) == (number, size):
            continue
        name = pools.names[i][0] if pools.names else f"{i}"
        had = "no such pool"
        if known:
            had = f"{fit.names[i]!r} with {fit.numbers[i]} x {fit.sizes[i]}"
        raise ValueError(
            f"`fitted(fit)`: pool {i}, {name!r}, has {number} x {size} units, "
            f"and the fit has {had}: use the structure and parameters that "
            "`search.sensitivity` saw."
        )
    if len(fit.sizes) != len(pools.sizes):
        raise ValueError(
            f"`fitted(fit)`: the fit has {len(fit.sizes)} pools, and there are "
            f"{len(pools.sizes)}: use the structure and parameters that "
            "`search.sensitivity` saw."
        )
