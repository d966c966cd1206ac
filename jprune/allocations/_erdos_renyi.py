"""Sparsities by the shape of a leaf."""

import math
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jprune._core import counts as _counts
from jprune._core.calls import recorded
from jprune._core.checks import check_number
from jprune._core.describe import describe
from jprune.allocations._base import Allocation, Pools
from jprune.allocations._divisor import divide, divide_along
from jprune.selection.plan import split_entries


@recorded
def erdos_renyi(
    kernel: bool = True, power: float = 1.0, target: float | None = None
) -> Allocation:
    r"""Keeps small layers denser than large ones, by the Erdos-Renyi rule.

    A layer of dimensions :math:`d_i` has a density in proportion to
    :math:`(\sum_i d_i / \prod_i d_i)^{power}`. Layers whose density would exceed 1
    stay dense, and the others share the rest. The total is exact, and no pool's
    count rises with the sparsity. Rounding: a pool keeps its k-th unit as soon as
    its quota, the density times its number of units, passes k - 1/2.

    A structure may require pools to keep equal numbers (``fan_in``, ``n_m``). Then
    counts are rounded for each pool instead, and the total is the sum of these.

    Args:
      kernel: Whether all dimensions of a layer count (ERK), or only the last two,
        inputs and outputs.
      power: How strong the differences are; 0 makes all densities equal. Static.
      target: The last sparsity of a schedule. The rule then holds there, and on
        the way to it every pool has lost the same fraction of what it is to
        lose, so that small layers, too, are pruned from the start. None: the
        rule holds at every sparsity, and small layers are dense for long.
        Static.

    Returns:
      An :class:`Allocation`. It divides a total the same way, traced or not. With
      a ``target`` it refuses a number above it; a schedule or a traced number
      above it gives the counts of the target.

    Raises:
      ValueError: ``power`` is not a finite number, or ``target`` is not one in
        [0, 1]; when used, if a structure asks for equal counts of pools and
        there is a ``target``.

    References:
      Evci et al., `Rigging the Lottery: Making All Tickets Winners
      <https://arxiv.org/abs/1911.11134>`_, 2020, section 3: ERK.
      Mocanu et al., `Scalable training of artificial neural networks with
      adaptive sparse connectivity <https://arxiv.org/abs/1707.04780>`_, 2018.
      Rounding: the method of Webster, also called of Sainte-Lague.

    >>> import jax.numpy as jnp, jprune
    >>> params = {"a": jnp.ones((2, 4)), "b": jnp.ones((3, 6)),
    ...           "c": jnp.ones((2, 4, 6))}
    >>> masks = jprune.find_masks(
    ...     params, .5, allocation=jprune.allocations.erdos_renyi())
    >>> [int(mask.sum()) for mask in masks.values()]
    [8, 12, 17]

    Half of the way to a target of .75, and there:

    >>> rule = jprune.allocations.erdos_renyi(target=.75)
    >>> for sparsity in (.375, .75):
    ...     masks = jprune.find_masks(params, sparsity, allocation=rule)
    ...     print([int(mask.sum()) for mask in masks.values()])
    [6, 12, 28]
    [4, 6, 8]
    """
    power = check_number("`erdos_renyi(power=...)`", power)
    if not isinstance(power, float) or not math.isfinite(power):
        raise ValueError(
            f"`erdos_renyi(power=...)` must be a finite number, got {power}."
        )
    if target is not None:
        target = check_number("`erdos_renyi(target=...)`", target)
        if not isinstance(target, float) or not 0.0 <= target <= 1.0:
            raise ValueError(
                "`erdos_renyi(target=...)` must be a number in [0, 1], got "
                f"{describe(target)}."
            )

    def raw(shape: tuple[int, ...]) -> float:
        dims = shape if kernel else shape[-2:]
        return max(sum(dims), 1) / max(math.prod(dims), 1)

    def counts(pools: Pools, sparsity: Any) -> Any:
        if pools.shapes is None:
            raise ValueError(
                "`erdos_renyi()` divides among parameters, and the structure's "
                f"{len(pools.sizes)} pools span several; `uniform` and "
                "`global_ranking` can."
            )
        units = pools.numbers * pools.sizes
        if not units.size:
            return []  # a part of `optax.partition` that got nothing
        raws = np.array([raw(shape) for shape in pools.shapes])
        if pools.kept is not None:
            if target is not None:
                raise ValueError(
                    "`erdos_renyi(target=...)` is for structures that let pools "
                    "keep different numbers; leave `target` out."
                )
            wanted = _counts.density_of(sparsity) * int(units.sum())
            densities = _densities(raws**power, units, wanted)
            return [
                pools.kept(1 - density, size)
                for density, size in zip(densities, pools.sizes, strict=True)
            ]
        of_pools = np.repeat(np.arange(len(units)), pools.numbers)
        sizes = pools.sizes[of_pools]
        logs = power * np.log2(raws[of_pools]) + np.log2(np.maximum(sizes, 1))
        total = _counts.left_of(sparsity, units.sum())
        if target is None:
            found = divide(logs, sizes, total)
        else:
            last = divide(
                logs, sizes, int(_counts.left_of(target, units.sum()))
            )
            found = divide_along(
                np.stack([sizes, last.astype(np.int64)]), total
            )
        if (pools.numbers == 1).all():
            return found
        if isinstance(found, np.ndarray):
            return np.split(found, np.cumsum(pools.numbers)[:-1])
        return split_entries(found, pools.numbers)

    return Allocation(counts, most=target)


def _densities(raw: np.ndarray, units: np.ndarray, total: Any) -> Any:
    """Proportional to ``raw``, or 1, so that ``total`` of all units stay."""
    xp: Any = np
    if isinstance(total, jax.Array):
        xp, total = jnp, total.astype(float)
    order = np.argsort(-raw, kind="stable")
    # With the first i leaves of this order dense, the others have this factor.
    dense = (np.cumsum(units[order]) - units[order]).astype(float)
    weights = np.cumsum((raw * units)[order][::-1])[::-1]
    factors = (total - dense) / np.where(weights > 0, weights, 1)
    fits = factors * raw[order] <= 1
    first = xp.argmax(xp.append(fits[:-1], True))
    rest = xp.clip(factors[first] * raw, 0, 1)
    return xp.where(np.argsort(order) < first, 1.0, rest)
