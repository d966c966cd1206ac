"""Which axes of which parameters are the same units."""

import itertools
from collections.abc import Iterator
from typing import Any, NamedTuple

import numpy as np

from jprune._core.programs import bound, check_call
from jprune._core.typing import Tree
from jprune.compaction.graph.constants import Array
from jprune.compaction.graph.trace import Trace
from jprune.jaxprs.products import products_of
from jprune.jaxprs.program import Leaf


class Pool(NamedTuple):
    """A set of units that are parts of the same axes, and can be compared."""

    name: str  # an axis that they are parts of; no other pool's
    units: Array  # [layers, n] numbers of units; 1 layer if they are shared
    axes: tuple[tuple[str, int], ...]  # (path, axis) that each is a part of


class Frozen(NamedTuple):
    """Positions of one axis of a parameter that can't be removed."""

    path: str
    axis: int
    positions: int  # how many of them
    reason: str  # the equation and why


class Product(NamedTuple):
    """A product of arrays or a convolution, counted as often as it runs."""

    multiply_adds: int
    axes: tuple[Array, ...]  # units of each axis that can get smaller


class Graph(NamedTuple):
    """What :func:`trace_units` returns; prints as a table."""

    leaves: tuple[Leaf, ...]
    units: tuple[tuple[Array, ...], ...]  # by leaf and axis, as in `Trace`
    pools: tuple[Pool, ...]
    frozen: tuple[Frozen, ...]
    products: tuple[Product, ...] = ()  # what is computed
    summed: tuple[tuple[int, ...], ...] = ()  # axes of leaves, contracted

    def __str__(self) -> str:
        lines = []
        for pool in self.pools:
            layers, n = pool.units.shape
            size = f"{n}" if layers == 1 else f"{layers} x {n}"
            axes = ", ".join(f"{path}[{axis}]" for path, axis in pool.axes)
            lines.append(f"{size} units: {axes}")
        lines += [
            f"frozen: {path}[{axis}], {n} positions: {reason}"
            for path, axis, n, reason in self.frozen
        ]
        return "\n".join(lines)


def trace_units(fn: Any, params: Tree, *args: Any, **static: Any) -> Graph:
    """Finds the units of any JAX function: parameters to be removed together.

    It reads the jaxpr of ``fn(params, *args)``. A unit is, for example, a column of a
    kernel together with the entry of its bias, the scale and statistics of the norm
    after it, and the row of the next kernel. Residual streams, tied weights and
    attention heads have units too. A unit can be removed only if it provably adds 0
    to every sum once all its parameters are 0. All other positions are frozen, and
    the graph gives the reason.

    Args:
      fn: Any function of parameters and arrays: ``model.apply``, a functional
        call of NNX or Equinox, plain code.
      params: All parameters that may be removed; in Linen, the whole dict of
        variables.
      *args: Further arguments, arrays or shapes; their axes are frozen.
      **static: Keyword arguments of ``fn``, fixed, such as ``train=False``; no arrays.

    Returns:
      A :class:`Graph`, for :func:`units`.

    Raises:
      ValueError: ``fn`` is not a function, a parameter or argument is not an array, or
        the size of a parameter is a symbol of ``jax.export``. Sizes of arguments may
        be symbols.

    Cost: only constants are computed; a scan is walked layer by layer.

    >>> import jax, jax.numpy as jnp, jprune
    >>> def fn(params, x):
    ...     return jax.nn.relu(x @ params["w"] + params["b"]) @ params["v"]
    >>> params = {"w": jnp.ones((4, 8)), "b": jnp.ones(8), "v": jnp.ones((8, 3))}
    >>> print(jprune.trace_units(fn, params, jnp.ones((1, 4))))
    8 units: b[0], v[0], w[1]
    frozen: v[1], 3 positions: an axis of the output
    frozen: w[0], 4 positions: axis 1 of array 0 of the arguments
    """
    check_call("trace_units", fn, params, args, concrete=False)
    return graph_of(traced(bound("trace_units", fn, static), params, args))


def traced(fn: Any, params: Tree, args: tuple[Any, ...]) -> Trace:
    """The trace with everything frozen that can't be removed."""
    trace = Trace(fn, params, args)
    trace.products = trace.walk([None] * len(trace.leaves)).products
    trace.number()
    pools = pools_of(trace)
    for pool in pools:
        if pool.units.shape[1] == 1:
            trace.freeze(pool.units.ravel(), "the only unit")
    for half in (0, 1):  # while some are gone, others must be there
        dead = np.zeros(trace.count, bool)
        for pool in pools:
            dead[pool.units[:, half::2]] = pool.units.shape[1] > 1
        for site in trace.walk(trace.zeroed(dead)).sums():
            units = trace.touched(site, site.adds)
            why = f"{site.why}: what is removed would add to a sum"
            if site.cause:
                why = f"{why}, since {site.cause}"
            trace.freeze(units[dead[units]], why)
    trace.number()
    return trace


def graph_of(trace: Trace) -> Graph:
    """Data without the trace."""
    return Graph(
        tuple(trace.leaves),
        tuple(map(tuple, trace.units)),
        tuple(pools_of(trace)),
        tuple(_frozen(trace)),
        tuple(_products(trace)),
        tuple(_summed(trace)),
    )


def _summed(trace: Trace) -> Iterator[tuple[int, ...]]:
    """The axes of each parameter that products with inputs sum over."""
    uses = products_of(trace.jaxpr, trace.leaves).uses
    for leaf in trace.leaves:
        mine = (use.in_axes for use in uses if use.path == leaf.path)
        yield tuple(sorted({axis for axes in mine for axis in axes}))


def _products(trace: Trace) -> Iterator[Product]:
    """Products and the units of their axes; what is frozen left out."""
    units: dict[int, Array] = {}  # many axes are one array
    for product in trace.products:
        axes = []
        for ids in product.axes:
            if ids is not None:
                if id(ids) not in units:
                    units[id(ids)] = trace.units_of(ids)
                axes.append(units[id(ids)])
        yield Product(
            product.times * product.whole,
            tuple(x for x in axes if (x >= 0).any()),
        )


def pools_of(trace: Trace) -> list[Pool]:
    """Units sorted by the axes that they are parts of, and by layer."""
    slots = [
        (i, k)
        for i, leaf in enumerate(trace.leaves)
        for k in range(len(leaf.shape))
    ]
    kind = np.zeros(trace.count, np.int64)  # the same for the same axes
    layer = np.full(trace.count, -1)
    inside = []
    for i, k in slots:
        units = trace.units[i][k]
        here = np.unique(units[units >= 0])
        inside.append(here)
        _, part = np.unique(kind[here], return_inverse=True)
        kind[here] = np.max(kind, initial=0) + 1 + part  # new kinds for these
        if units.ndim == 3:
            for number, one in enumerate(units):
                these = np.unique(one[one >= 0])
                new = np.where(layer[these] == -1, number, -2)
                layer[these] = np.where(layer[these] == number, number, new)
    # Heads and their width are parts of the same axes, and made one by one.
    made = trace.ids.batch(trace.roots)
    pools: dict[Any, list[Array]] = {}
    for key in sorted(set(zip(layer.tolist(), kind.tolist(), strict=True))):
        here = np.flatnonzero((layer == key[0]) & (kind == key[1]))
        private = key[0] >= 0
        for order, batch in enumerate(np.unique(made[here])):
            units = here[made[here] == batch]
            name = (private, key[1], order, len(units) if private else key[0])
            pools.setdefault(name, []).append(units)
    found = []
    for rows in pools.values():
        axes = tuple(
            (trace.leaves[i].path, k)
            for (i, k), here in zip(slots, inside, strict=True)
            if np.isin(rows[0][0], here)
        )
        found.append(Pool("", np.stack(rows), axes))
    return _named(sorted(found, key=lambda pool: int(pool.units[0, 0])))


def _named(pools: list[Pool]) -> list[Pool]:
    """Each by its first axis that names no pool before it, else by a number."""
    taken: set[str] = set()
    named = []
    for pool in pools:
        names = [f"{path}[{axis}]" for path, axis in pool.axes]
        more = (f"{names[0]}, {n}" for n in itertools.count(2))
        name = next(n for n in itertools.chain(names, more) if n not in taken)
        taken.add(name)
        named.append(pool._replace(name=name))
    return named


def _frozen(trace: Trace) -> list[Frozen]:
    """The axes of which something stays, and the first reason of it."""
    found = []
    for i, leaf in enumerate(trace.leaves):
        for axis, units in enumerate(trace.units[i]):
            fixed = (units < 0).all(-1)
            if not fixed.any():
                continue
            roots = trace.ids.resolve(trace.axes[i][axis])[fixed]
            reasons = (trace.frozen.get(int(r)) for r in np.unique(roots))
            reason = next((r for r in reasons if r), "")
            found.append(Frozen(leaf.path, axis, int(fixed.sum()), reason))
    return found
