"""Allocations: how much where. How many units each pool keeps."""

import math
from collections.abc import Callable
from fractions import Fraction
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jprune import _counts
from jprune._calls import recorded, show
from jprune._checks import check_number
from jprune._counts import Count
from jprune._layout import rearrange
from jprune._plan import split
from jprune._scales import scale_of, spread, top_of
from jprune._typing import Tree

__all__ = ["Allocation", "Pools", "erdos_renyi", "global_ranking", "uniform"]


class Pools(NamedTuple):
    """What is divided: the pools of each leaf, and nothing of its values."""

    numbers: np.ndarray  # int64, pools of each leaf
    sizes: np.ndarray  # int64, units in each of them
    # Of parameters, without batch axes; None where pools are not of leaves.
    shapes: list[tuple[int, ...]] | None
    # As in Structure: how many units every pool keeps, where all of a leaf must
    # keep the same.
    kept: Callable[[Any, np.ndarray], Any] | None


class Allocation(NamedTuple):
    """How the units that stay are divided among pools.

    ``counts`` returns how many units the pools of each leaf keep: a sequence
    with an integer, or an integer array ``[pools]``, for each; where ``joint``,
    one integer for all.
    """

    counts: Callable[[Pools, Any], Any]  # pools, sparsity -> counts kept
    # Scores of units -> comparable ones; None: as they are.
    normalize: Callable[[Tree], Tree] | None = None
    joint: bool = False  # whether all units are in one ranking
    # Where joint: int64 sizes of pools -> units that each keeps in any case.
    least: Callable[[np.ndarray], np.ndarray] | None = None

    def __repr__(self) -> str:
        return show(self)


@recorded
def uniform() -> Allocation:
    """The same sparsity in every pool, each rounded by itself.

    Returns:
      An :class:`Allocation`; goes with every structure.

    >>> import jax.numpy as jnp, jprune
    >>> params = {"a": jnp.array([[1., 2.]]), "b": jnp.array([[30., 40.]])}
    >>> jprune.find_masks(params, .5, allocation=jprune.allocations.uniform())
    {'a': Array([[False,  True]], dtype=bool), 'b': Array([[False,  True]], dtype=bool)}
    """

    def counts(pools: Pools, sparsity: Any) -> Any:
        kept = (pools.kept or _counts.left_of)(sparsity, pools.sizes)
        if isinstance(kept, _counts.Count):
            kept = _counts.to_int32(kept)
        return kept

    return Allocation(counts)


@recorded
def erdos_renyi(kernel: bool = True, power: float = 1.0) -> Allocation:
    r"""Dense where layers are small: density goes with the sum of dimensions.

    A layer of dimensions :math:`d_i` has a density in proportion to
    :math:`(\sum_i d_i / \prod_i d_i)^{power}`. Layers whose density would pass 1
    become dense, and the others take what is left. The total is exact: each pool
    has the whole units of its quota, and the largest remainders one more (of
    equal ones the first). So while a schedule rises one pool may win a unit that
    another loses, and its best pruned one returns.

    With a structure whose pools must be alike (``fan_in``, ``n_m``), counts are
    rounded per pool instead, and the total is theirs.

    Args:
      kernel: Whether all dimensions of a layer count (ERK), or the last two only,
        inputs and outputs.
      power: How strong the differences are; 0 makes all densities equal. Static.

    Returns:
      An :class:`Allocation`. With a traced sparsity quotas are float32 (x64:
      float64), and of large layers near to equal remainders another may win;
      the total is exact.

    Raises:
      ValueError: ``power`` is not a finite number.

    References:
      Evci et al., `Rigging the Lottery: Making All Tickets Winners
      <https://arxiv.org/abs/1911.11134>`_, 2020, section 3: ERK.
      Mocanu et al., `Scalable training of artificial neural networks with
      adaptive sparse connectivity <https://arxiv.org/abs/1707.04780>`_, 2018.

    >>> import jax.numpy as jnp, jprune
    >>> params = {"a": jnp.ones((2, 4)), "b": jnp.ones((3, 6)),
    ...           "c": jnp.ones((2, 4, 6))}
    >>> masks = jprune.find_masks(
    ...     params, .5, allocation=jprune.allocations.erdos_renyi())
    >>> [int(mask.sum()) for mask in masks.values()]
    [8, 12, 17]
    """
    power = check_number("`erdos_renyi(power=...)`", power)
    if not isinstance(power, float) or not math.isfinite(power):
        raise ValueError(
            f"`erdos_renyi(power=...)` must be a finite number, got {power}."
        )

    def raw(shape: tuple[int, ...]) -> float:
        dims = shape if kernel else shape[-2:]
        return (max(sum(dims), 1) / max(math.prod(dims), 1)) ** power

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
        wanted = _counts.density_of(sparsity) * int(units.sum())
        densities = _densities(raws, units, wanted)
        if pools.kept is not None:
            return [
                pools.kept(1 - density, size)
                for density, size in zip(densities, pools.sizes, strict=True)
            ]
        of_pools = np.repeat(np.arange(len(units)), pools.numbers)
        total = _counts.count_of(_counts.left_of(sparsity, units.sum()))
        dealt = _deal(densities[of_pools], pools.sizes[of_pools], total)
        return split(dealt, pools.numbers)

    return Allocation(counts)


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


def _deal(densities: Any, sizes: np.ndarray, total: Count) -> jax.Array:
    """Whole units for each pool, ``total`` in all, by the largest remainder."""
    quotas, size = densities * sizes.astype(float), _counts.count_of(sizes)
    whole = _counts.floor_of(quotas)
    whole = _counts.where(_counts.less(size, whole), size, whole)
    full = _counts.equal(whole, size)
    remainders = jnp.where(full, -1, quotas % 1)
    place = jnp.argsort(jnp.argsort(remainders, descending=True, stable=True))
    missing = _counts.subtract(total, _counts.total(whole))
    wins = _counts.less(_counts.count_of(place), missing) & ~full
    whole = _counts.add(whole, _counts.count_of(wins.astype(np.int32)))
    # A float32 quota of millions is some units off: the largest pools settle it.
    order = np.argsort(-sizes, kind="stable")
    whole, size = jax.tree.map(lambda x: x[order], (whole, size))
    found, room = _counts.total(whole), _counts.subtract(size, whole)
    more = _counts.share(_counts.subtract(total, found), room)
    less = _counts.share(_counts.subtract(found, total), whole)
    whole = _counts.add(_counts.subtract(whole, less), more)
    return _counts.to_int32(whole)[np.argsort(order)]


_NORMALIZATIONS = (None, "l2", "lamp")


@recorded
def global_ranking(
    normalize: str | None = None, min_density: float = 0.0
) -> Allocation:
    r"""One ranking of all units: leaves that matter less lose more.

    Structures whose pools must be alike (``fan_in``, ``n_m``) are refused.

    Args:
      normalize: What makes scores of different layers comparable. ``"l2"``
        divides by the norm of the layer's scores. ``"lamp"`` divides the square
        of each score by the sum of the squares that are not smaller in its
        layer: :math:`s_u^2 / \sum_{v \ge u} s_v^2`. It is made for scores that
        are not negative; negative ones stay as they are, behind all others.
        Ranked are their roots times a power of two, so that no order is lost.
      min_density: Every layer keeps at least this fraction of its units, rounded
        up, by its own best. A number that would leave less is refused where it is
        used; where a schedule or a traced sparsity would, that is what stays.
        Static.

    Returns:
      An :class:`Allocation`; the total is exact, and without ``min_density`` a
      leaf may be lost whole. ``"lamp"`` sorts each layer, and gathers a layer
      that a mesh divides for that; ``min_density`` selects once more.

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

    def least(sizes: np.ndarray) -> np.ndarray:
        # As a decimal: in binary .1 is more than a tenth, and 2 of 10 would stay.
        exact = Fraction(repr(density))
        return np.array([math.ceil(exact * int(n)) for n in sizes], np.int64)

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
    top = top_of(finite, axes)
    scale = scale_of(top)
    squares = jnp.sum((finite * scale) ** 2, axes, keepdims=True)
    norm = jnp.sqrt(jnp.where(top > 0, squares, 1))
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
