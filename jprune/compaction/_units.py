"""Whole units as a structure: what is pruned can be removed."""

import re
from collections import defaultdict
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jprune._core.calls import recorded
from jprune._core.checks import check_integer, check_number
from jprune._core.counts import at_least
from jprune._core.describe import describe
from jprune._core.ends import ends, partner
from jprune._core.layout import laid_out_like
from jprune._core.members import Members, Numbers, line_of
from jprune._core.trees import (
    is_hole,
    leaves_with_path,
    path_name,
    rebuild,
)
from jprune._core.typing import Masks, Tree
from jprune.compaction.costs import COSTS, fraction_left, polynomial
from jprune.compaction.graph.pools import Graph, Pool
from jprune.structures import First, Structure


@recorded
def units(
    graph: Graph,
    *,
    where: str | Callable[[Pool], bool] | None = None,
    round_to: int = 1,
    by: str = "units",
    floor: float = 0.05,
    of: Graph | None = None,
) -> Structure:
    r"""Keeps or removes whole units, which :func:`compact` can remove afterwards.

    A unit is masked with all its parameters, biases and scales included. Its score is
    the sum over them, unless the criterion scores units itself. Units that can be
    compared form a pool, and no pool is ever emptied. If each layer of a scan has its
    own units, each layer is a pool.

    The sparsity is the fraction of units removed. With ``by="parameters"``,
    ``"multiply_adds"`` or ``"bytes"`` it is the fraction of that cost removed from the
    compact model, as :func:`jprune.report.cost` counts it: jprune removes units in the
    same order, but only as many as needed to leave at most the fraction :math:`1 - s`
    of the cost. With :math:`n_p` of :math:`N_p` units kept in each pool, that is the
    smallest fraction :math:`r` of units for which

    .. math:: \sum_a c_a \prod_{p \in a} n_p(r) / N_p
              \le (1 - s) \sum_a c_a,

    where arrays (products) :math:`a` have :math:`c_a` entries (multiply-adds),
    divided among the pools that their axes are made of. ``global_ranking`` meets the
    target within one unit, ``uniform`` within one unit of each pool, and ``round_to``
    within a multiple. If even one unit in each pool costs more, one in each is kept.
    While a schedule rises, no unit returns; when it falls, units return as soon as the
    target allows one.

    Args:
      graph: What :func:`trace_units` found. Its parameters are matched with the pruned
        ones by the ends of their paths, so a graph of a Linen module's variables works
        for ``variables["params"]``.
      where: Which pools: a regular expression that is searched in each ``path[axis]``
        that a pool's units are parts of, or a function of a :class:`Pool`. Other
        pools keep all units. None: all pools. Static.
      round_to: Pools keep a multiple of it (rounded up), or all units. Static.
      by: ``"units"``, ``"parameters"``, ``"multiply_adds"`` or ``"bytes"``: what the
        sparsity is a fraction of. Static. Multiply-adds are those at the shapes of the
        traced arguments, where a symbolic size counts as 1.
      floor: With ``global_ranking`` every pool keeps at least this fraction of its
        units, rounded up, those with the best scores, whatever the sparsity. Without
        it, a layer may be reduced to a single unit, a bottleneck. Static.
      of: The graph of an earlier, larger model. Sparsities (and ``floor``) are then
        fractions of that model, so training that compacts on its way keeps one
        schedule. None: ``graph`` itself.

    Returns:
      A :class:`~jprune.structures.Structure`.

    Raises:
      ValueError: Here if ``graph`` is not a graph, ``round_to`` is not a positive
        integer, ``by`` is unknown, ``floor`` is outside [0, 1], ``of`` is not the graph
        of a larger version of the model, nothing can be removed, or ``where`` selects no
        pool; when used, if the parameters are not those of the graph, or the caller
        passes ``where`` too.

    References:
      He et al., `AutoML for Model Compression <https://arxiv.org/abs/1802.03494>`_,
      2018 (AMC), for budgets of the compact model.

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
            "`units(by=...)` must be 'units', 'parameters', 'multiply_adds' or "
            f"'bytes', got {describe(by)}."
        )
    multiple = check_integer("`units(round_to=...)`", round_to, 1, static=True)
    if not graph.pools:
        raise ValueError(
            "`units(graph)`: nothing can be removed:\n" + str(graph)
        )
    share = check_number("`units(floor=...)`", floor)
    if not isinstance(share, float) or not 0.0 <= share <= 1.0:
        raise ValueError(
            "`units(floor=...)` must be a number in [0, 1], got "
            f"{describe(floor)}."
        )
    if of is not None and not isinstance(of, Graph):
        raise ValueError(
            "`units(of=...)` must be what `trace_units` returned for the larger "
            f"model, got {describe(of)}."
        )
    if where is not None:
        graph = _selected(graph, where)
        of = None if of is None else _selected(of, where)
    leaf_of, members = _finder(graph), _members(graph)
    total = 1 + max(int(pool.units.max()) for pool in graph.pools)

    def concerned(params: Tree) -> Tree:
        return rebuild(
            params,
            [
                not is_hole(x) and leaf_of(path, x) is not None
                for path, x in leaves_with_path(params)
            ],
        )

    def lines(scores: Tree) -> Iterator[tuple[Numbers, jax.Array]]:
        for path, x in leaves_with_path(scores):
            i = None if is_hole(x) else leaf_of(path, x)
            if i is None:
                continue
            for axis, numbers in enumerate(graph.units[i]):
                if (numbers >= 0).any():
                    yield numbers, line_of(x, axis, numbers.ndim == 3)

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
        lambda scores: members.add_up(lines(scores)),
        to_masks,
        where=concerned,
        round_to=multiple,
        least=partial(at_least, share) if share else None,
        names=tuple(
            tuple(f"{path}[{axis}]" for path, axis in pool.axes)
            for pool in graph.pools
        ),
        of=None if of is None else _first(graph, of),
        cost=None if by == "units" else fraction_left(graph, by, of),
        costs=partial(polynomial, graph),
        members=members,
    )


def _finder(graph: Graph) -> Callable[[Any, Any], int | None]:
    """From the path and array of a leaf to its number, if it has units."""
    paths = ends(leaf.path for leaf in graph.leaves)

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

    return leaf_of


@recorded
def _members(graph: Graph) -> Members:
    """The units of leaves: it prints and pickles by the graph."""
    leaf_of = _finder(graph)

    def numbers_of(path: Any, x: Any) -> Any:
        i = leaf_of(path, x)
        return None if i is None else graph.units[i]

    def summed(path: Any, x: Any) -> tuple[int, ...]:
        i = leaf_of(path, x)
        return () if i is None else graph.summed[i]

    pools = tuple(pool.units for pool in graph.pools)
    return Members(numbers_of, pools, summed)


def _first(graph: Graph, of: Graph) -> First:
    """The pools of the larger model: those that are here, and the others."""
    larger: defaultdict[Any, list[Pool]] = defaultdict(list)
    for pool in of.pools:
        larger[pool.axes, len(pool.units)].append(pool)
    sizes = []
    for pool in graph.pools:
        layers, size = pool.units.shape
        alike = larger[pool.axes, layers]
        first = alike.pop(0) if alike else None
        if first is None or first.units.shape[1] < size:
            found = "no such pool"
            if first is not None:
                found = f"{first.units.shape[1]} units"
            raise ValueError(
                f"`units(graph, of=...)`: of {pool.name!r} with {size} units the "
                f"other graph has {found}: it is not that of a larger model from "
                "which this one was compacted."
            )
        sizes.append(first.units.shape[1])
    others = [
        pool.units.shape[1]
        for alike in larger.values()
        for pool in alike
        for _ in pool.units
    ]
    return First(
        np.array(sizes, np.int64), np.array(others, np.int64), len(others)
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
