"""One ranking of all units."""

import math
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp

from jprune._core import counts as _counts
from jprune._core.calls import recorded
from jprune._core.checks import check_number
from jprune._core.layout import rearrange
from jprune._core.scales import scale_of, spread, sum_of_squares, top_of
from jprune._core.typing import Tree
from jprune.allocations._base import Allocation, Pools

_NORMALIZATIONS = (None, "l2", "lamp")


@recorded
def global_ranking(
    normalize: str | None = None, min_density: float = 0.0
) -> Allocation:
    r"""Ranks the units of all leaves together: less important leaves lose more.

    Structures whose pools must keep equal numbers (``fan_in``, ``n_m``) are refused.

    Args:
      normalize: What makes scores of different layers comparable. ``"l2"``
        divides by the norm of the layer's scores. ``"lamp"`` divides the square
        of each score by the sum of the squares that are not smaller in its
        layer: :math:`s_u^2 / \sum_{v \ge u} s_v^2`. It is meant for scores that
        are not negative; negative scores stay as they are and rank last. The
        roots are ranked, times a power of two, so that no order is lost.
      min_density: Every layer keeps at least this fraction of its units, rounded
        up: those with the best scores. A number as sparsity that would leave less
        is refused when used; a schedule or a traced sparsity stops there. Static.

    Returns:
      An :class:`Allocation`. The total is exact; without ``min_density`` a leaf
      may lose all its units. ``"lamp"`` sorts each layer, and gathers a layer
      that is sharded; ``min_density`` costs a second selection.

    Raises:
      ValueError: An unknown ``normalize``, or ``min_density`` outside [0, 1].

    References:
      Lee et al., `Layer-adaptive sparsity for the Magnitude-based Pruning
      <https://arxiv.org/abs/2010.07611>`_, 2020, equation 1: LAMP.

    >>> import jax.numpy as jnp, jprune
    >>> params = {"a": jnp.array([[1., 2.]]), "b": jnp.array([[30., 40.]])}
    >>> jprune.find_masks(
    ...     params, .5, allocation=jprune.allocations.global_ranking())
    {'a': Array([[False, False]], dtype=bool), 'b': Array([[ True,  True]], dtype=bool)}
    """
    if normalize not in _NORMALIZATIONS:
        raise ValueError(
            "`global_ranking(normalize=...)` must be None, 'l2' or 'lamp', got "
            f"{normalize!r}."
        )
    density = check_number("`global_ranking(min_density=...)`", min_density)
    if not isinstance(density, float) or not 0.0 <= density <= 1.0:
        raise ValueError(
            "`global_ranking(min_density=...)` must be a number in [0, 1], got "
            f"{min_density}."
        )

    least = partial(_counts.at_least, density)

    def counts(pools: Pools, sparsity: Any) -> Any:
        left = _counts.left_of(sparsity, (pools.numbers * pools.sizes).sum())
        most = (pools.numbers * least(pools.sizes)).sum()
        if not isinstance(left, _counts.Count):
            return max(int(left), int(most))
        most = _counts.count_of(most)
        return _counts.where(_counts.less(left, most), most, left)

    def normalized(units: Tree) -> Tree:
        function = {"l2": _by_norm, "lamp": _lamp}[str(normalize)]
        return jax.tree.map(function, units)

    return Allocation(
        counts,
        normalized if normalize else None,
        joint=True,
        least=least if density else None,
    )


def _by_norm(x: jax.Array) -> jax.Array:
    """Each pool divided by its norm; what is not finite stays as it is."""
    axes = tuple(range(1, x.ndim))
    finite = jnp.where(jnp.isfinite(x), x, 0)
    squares, scale = sum_of_squares(finite, axes)
    norm = jnp.sqrt(jnp.where(squares > 0, squares, 1))
    return jnp.where(jnp.isfinite(x), spread(finite, scale) / norm, x)


def _lamp(x: jax.Array) -> jax.Array:
    """Each score by the norm of those that come no later in the order."""

    def pools(x: jax.Array) -> jax.Array:
        flat = x.reshape(x.shape[0], math.prod(x.shape[1:]))
        order = jnp.argsort(flat, axis=-1, descending=True, stable=True)
        finite = jnp.where(jnp.isfinite(flat) & (flat > 0), flat, 0)
        ranked = jnp.take_along_axis(finite, order, -1)
        scale = scale_of(top_of(finite, (1,)))
        sums = jnp.cumsum((ranked * scale) ** 2, axis=-1)
        # The root of LAMP's score: its square would not be a float.
        norms = jnp.sqrt(jnp.where(sums > 0, sums, 1))
        scores = spread(ranked, scale) / norms
        place = jnp.argsort(order, axis=-1)
        scores = jnp.take_along_axis(scores, place, -1).reshape(x.shape)
        return jnp.where(jnp.isfinite(x) & (x >= 0), scores, x)

    sharding = jax.typeof(x).sharding
    return rearrange(pools, x, sharding.mesh, sharding.spec)
