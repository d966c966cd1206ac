"""What is left of a model's cost when so many units are."""

import itertools
import math
from collections import defaultdict
from collections.abc import Callable, Iterator

import jax
import numpy as np

from jprune._core.costs import Polynomial
from jprune.compaction.graph.constants import Array
from jprune.compaction.graph.pools import Graph

COSTS = ("parameters", "multiply_adds", "bytes")
Monomial = tuple[int, ...]  # of these pools the fractions that are left


def polynomial(graph: Graph, by: str) -> Polynomial:
    """What so many units of each pool cost, as :func:`jprune.report.cost` counts.

    An axis is as long as the number of its positions that are left. Of layers of a
    scan, which stay alike, the one with the most units counts. Exact if the units of
    a pool fill equally many positions.

    Args:
      graph: The units.
      by: What costs something: one of ``COSTS``.
    """
    terms: defaultdict[Monomial, float] = defaultdict(float)
    for size, axes in _arrays(graph, by):
        monomials = [_axis(graph, axis) for axis in axes]
        for several in itertools.product(*(m.items() for m in monomials)):
            key = tuple(sorted(pool for part, _ in several for pool in part))
            terms[key] += size * math.prod(share for _, share in several)
    last, degree = len(graph.pools), max(map(len, terms), default=0)
    which = [key + (last,) * (degree - len(key)) for key in terms]
    return Polynomial(
        np.array(list(terms.values()), float),
        np.array(which, np.int32).reshape(len(terms), degree),
    )


def fraction_left(
    graph: Graph, by: str, of: Graph | None = None
) -> Callable[[jax.Array], jax.Array]:
    """From kept units of every pool to the fraction of the cost that is left.

    Args:
      graph: The units.
      by: What costs something: one of ``COSTS``.
      of: The model whose cost the fractions are of; ``graph`` itself if None.

    Returns:
      A function of int32 counts, those of each pool's layers in turn.

    Raises:
      ValueError: Nothing costs anything.
    """
    cost = polynomial(graph, by)
    total = sum(size for size, _ in _arrays(of or graph, by))
    if not total:
        raise ValueError(f"`units(graph, by={by!r})`: the program has none.")
    shapes = np.array([pool.units.shape for pool in graph.pools])
    (layers, sizes), last = shapes.T, len(shapes)
    of_rows = np.repeat(np.arange(last), layers)

    def left(counts: jax.Array) -> jax.Array:
        most = jax.ops.segment_max(counts, of_rows, last)
        return cost.fraction(most / sizes, total)

    return left


def _arrays(graph: Graph, by: str) -> Iterator[tuple[int, tuple[Array, ...]]]:
    """What costs something: how much, and the units of its axes."""
    if by == "multiply_adds":
        yield from ((p.multiply_adds, p.axes) for p in graph.products)
        return
    for leaf, units in zip(graph.leaves, graph.units, strict=True):
        layer = (x[0] if x.ndim == 3 else x for x in units)
        each = leaf.dtype.itemsize if by == "bytes" else 1
        yield math.prod(leaf.shape) * each, tuple(layer)


def _axis(graph: Graph, units: Array) -> dict[Monomial, float]:
    """The fraction of an axis that is left, as a sum of monomials."""
    count = 1 + max(int(pool.units.max()) for pool in graph.pools)
    pool_of = np.full(count + 1, len(graph.pools))  # the last is no unit
    for number, pool in enumerate(graph.pools):
        pool_of[pool.units] = number
    units = np.sort(units, -1)
    units[:, 1:][units[:, 1:] == units[:, :-1]] = -1  # twice is once
    rows, numbers = np.unique(
        np.sort(pool_of[units], -1), axis=0, return_counts=True
    )
    found: defaultdict[Monomial, float] = defaultdict(float)
    for row, number in zip(rows.tolist(), numbers.tolist(), strict=True):
        pools = tuple(p for p in row if p < len(graph.pools))
        found[pools] += number / len(units)
    return found
