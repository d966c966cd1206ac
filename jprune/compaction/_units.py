"""Whole units as a structure: what is pruned can be removed."""

import re
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import PartitionSpec

from jprune._core.calls import recorded
from jprune._core.checks import check_integer
from jprune._core.describe import describe
from jprune._core.ends import ends, partner
from jprune._core.layout import laid_out_like
from jprune._core.trees import is_hole, leaves_with_path, path_name, rebuild
from jprune._core.typing import Masks, Tree
from jprune.compaction._costs import COSTS, fraction_left
from jprune.compaction.graph.pools import Graph, Pool
from jprune.structures import Structure


@recorded
def units(
    graph: Graph,
    *,
    where: str | Callable[[Pool], bool] | None = None,
    round_to: int = 1,
    by: str = "units",
) -> Structure:
    r"""Whole units: what :func:`compact` can remove afterwards.

    The score of a unit is the sum over all that belongs to it, biases and
    scales included; all of it is masked. Each set of
    units that can be compared is a pool, and none is ever emptied; units that
    every layer of a scan has for itself are a pool per layer.

    A sparsity is the fraction of units that goes, or, by ``"parameters"`` or
    ``"multiply_adds"``, the fraction that the compact model lacks of all
    parameters or multiply-adds of the model, as :func:`jprune.report.cost`
    counts them: as few units go, in the same order, as leave at most the
    fraction :math:`1 - s`. With :math:`n_p` of :math:`N_p` units kept in each
    pool, that is the least fraction :math:`r` of units for which

    .. math:: \sum_a c_a \prod_{p \in a} n_p(r) / N_p
              \le (1 - s) \sum_a c_a,

    where arrays (products) :math:`a` have :math:`c_a` entries (multiply-adds),
    divided among the pools that their axes are made of. In one ranking the
    target is met within one unit, with ``uniform`` within one of each pool,
    with ``round_to`` within so many; where even one unit in each pool costs
    more, that is what stays. While a schedule rises, nothing returns; when it
    falls, units return once any of them could be afforded.

    Args:
      graph: What :func:`trace_units` found. Its parameters and those that are
        pruned are matched by the ends of their paths, so a graph of a Linen
        module's variables serves for ``variables["params"]``.
      where: Which pools: a regular expression that is searched in each ``path[axis]``
        that a pool's units are parts of, or a function of a :class:`Pool`. Others
        keep all units. None: all pools. Static.
      round_to: Pools keep a multiple of it (rounded up), or all. Static.
      by: ``"units"``, ``"parameters"`` or ``"multiply_adds"``: what a sparsity
        is a fraction of. Static; multiply-adds are those at the shapes of the
        arguments that were traced.

    Returns:
      A :class:`~jprune.structures.Structure`.

    Raises:
      ValueError: Here if ``graph`` is none, ``round_to`` is no positive integer, ``by`` is
        unknown, nothing can be removed or ``where`` selects no pool; when used, if
        parameters are not those of the graph, or the caller has a ``where`` too.

    References:
      Budgets of the compact model are what AMC asks for: He et al., `AutoML for
      Model Compression <https://arxiv.org/abs/1802.03494>`_, 2018.

    >>> import jax, jax.numpy as jnp, jprune
    >>> def fn(params, x):
    ...     return jax.nn.relu(x @ params["w"] + params["b"]) @ params["v"]
    >>> params = {"w": jnp.ones((4, 3)), "b": jnp.array([1., 3., 2.]),
    ...           "v": jnp.ones((3, 2))}
    >>> graph = jprune.trace_units(fn, params, jnp.ones((1, 4)))
    >>> jprune.find_masks(params, .3, structure=jprune.units(graph))["b"]
    Array([False,  True,  True], dtype=bool)
    >>> half = jprune.units(graph, by="multiply_adds")  # of 3 units 2 must go
    >>> jprune.find_masks(params, .5, structure=half)["b"]
    Array([False,  True, False], dtype=bool)
    """
    if not isinstance(graph, Graph):
        raise ValueError(
            "`units(graph)` must be what `trace_units(fn, params, *args)` "
            f"returned, got {type(graph).__name__}."
        )
    if by not in ("units", *COSTS):
        raise ValueError(
            "`units(by=...)` must be 'units', 'parameters' or 'multiply_adds', "
            f"got {describe(by)}."
        )
    multiple = check_integer("`units(round_to=...)`", round_to, 1, static=True)
    if not graph.pools:
        raise ValueError(
            "`units(graph)`: nothing can be removed:\n" + str(graph)
        )
    if where is not None:
        graph = _selected(graph, where)
    paths = ends(leaf.path for leaf in graph.leaves)
    total = 1 + max(int(pool.units.max()) for pool in graph.pools)

    def leaf_of(path: Any, x: Any) -> int | None:
        i = partner(path, paths)
        if i is not None and np.shape(x) != graph.leaves[i].shape:
            raise ValueError(
                f"`units(graph)`: {path_name(path)!r} has shape {np.shape(x)}, "
                f"the graph was traced with {graph.leaves[i].shape}; a compact "
                "model has a graph of its own."
            )
        if i is None or not any((u >= 0).any() for u in graph.units[i]):
            return None
        return i

    def concerned(params: Tree) -> Tree:
        return rebuild(
            params,
            [
                not is_hole(x) and leaf_of(path, x) is not None
                for path, x in leaves_with_path(params)
            ],
        )

    def to_units(scores: Tree) -> Tree:
        sums = jnp.zeros(total + 1, jnp.float32)  # the last is no unit
        for path, x in leaves_with_path(scores):
            i = None if is_hole(x) else leaf_of(path, x)
            if i is None:
                continue
            for axis, numbers in enumerate(graph.units[i]):
                if (numbers < 0).all():
                    continue
                kept = (0, axis) if numbers.ndim == 3 else (axis,)
                rest = tuple(k for k in range(x.ndim) if k not in kept)
                line = _whole(jnp.sum(x, rest).astype(sums.dtype))
                line = jnp.broadcast_to(line[..., None], numbers.shape)
                sums = sums.at[numbers].add(line)
        return [sums[pool.units] for pool in graph.pools]

    def to_masks(masks: Masks, params: Tree) -> Masks:
        kept = jnp.ones(total + 1, bool)
        for pool, mask in zip(graph.pools, masks, strict=True):
            kept = kept.at[pool.units].set(mask)
        found: list[Any] = []
        for path, p in leaves_with_path(params):
            i = None if is_hole(p) else leaf_of(path, p)
            if i is None:
                found.append(p)  # a hole stays what it is
                continue
            mask = jnp.ones_like(p, bool)
            for axis, numbers in enumerate(graph.units[i]):
                if (numbers < 0).all():
                    continue
                shape = [1] * p.ndim
                shape[axis] = numbers.shape[-2]
                if numbers.ndim == 3:
                    shape[0] = len(numbers)
                here = kept[numbers].all(-1).reshape(shape)
                mask &= laid_out_like(mask, jnp.broadcast_to(here, p.shape))
            found.append(mask)
        return rebuild(params, found)

    return Structure(
        to_units,
        to_masks,
        where=concerned,
        round_to=multiple,
        cost=None if by == "units" else fraction_left(graph, by),
    )


def _selected(graph: Graph, where: Any) -> Graph:
    """The graph with the units of some pools alone."""
    if not (isinstance(where, str) or callable(where)):
        raise ValueError(
            "`units(where=...)` must be a regular expression or a function of a "
            f"pool, got {describe(where)}."
        )
    found = where
    if isinstance(where, str):
        try:
            pattern = re.compile(where)
        except re.error as error:
            raise ValueError(
                f"`units(where={where!r})` is no regular expression: {error}."
            ) from None

        def found(pool: Pool) -> bool:
            names = (f"{path}[{axis}]" for path, axis in pool.axes)
            return any(map(pattern.search, names))

    pools = tuple(pool for pool in graph.pools if found(pool))
    if not pools:
        names = ", ".join(pool.name for pool in graph.pools)
        raise ValueError(
            f"`units(where={where!r})` selects no pool of: {names}."
        )
    some = np.zeros(
        2 + max(int(x.max(initial=-1)) for leaf in graph.units for x in leaf),
        bool,
    )
    for pool in pools:
        some[pool.units] = True  # the last is no unit

    def only(numbers: Any) -> Any:
        return np.where(some[numbers], numbers, -1)

    return graph._replace(
        pools=pools,
        units=tuple(tuple(map(only, leaf)) for leaf in graph.units),
        products=tuple(
            p._replace(axes=tuple(map(only, p.axes))) for p in graph.products
        ),
    )


def _whole(x: jax.Array) -> jax.Array:
    """On every device: units are few."""
    if jax.typeof(x).sharding.mesh.are_all_axes_explicit:
        return jax.sharding.reshard(x, PartitionSpec())
    return x
