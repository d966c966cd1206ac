"""What a record of axes says of units, of constants and of costs."""

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np

from jprune.compaction.graph.constants import Array, Known, nothing, zeros
from jprune.compaction.graph.walk import (
    DRIVERS,
    VIEWS,
    Multiplication,
    Value,
    Walk,
)
from jprune.jaxprs.records import PRODUCT, VIEW, Axes, Places
from jprune.jaxprs.shapes import entries


class Aligned(NamedTuple):
    """The ids of an equation's axes, once the record was read."""

    outs: list[tuple[Array | None, ...]]  # of each output
    summed: list[Array | None]


Exact = Callable[[Walk, Any, list[Value], Aligned], list[Value]]
EXACT: dict[str, Exact] = {}


def exact(*names: str) -> Callable[[Exact], Exact]:
    """Registers what is known of outputs besides where they must be 0."""

    def register(fn: Exact) -> Exact:
        EXACT.update(dict.fromkeys(names, fn))
        return fn

    return register


def by_axes(walk: Walk, eqn: Any, ins: list[Value], axes: Axes) -> list[Value]:
    """The outputs of an equation, by its record."""
    name = eqn.primitive.name
    walk.freeze(axes.why, *(ins[i].ids[k] for i, k in axes.whole))

    def joined(places: Places) -> Array | None:
        return walk.join(name, *(ins[i].ids[k] for i, k in places))

    def ids_of(places: Places | None, size: int) -> Array | None:
        if places is None:
            return walk.new(size, axes.why)
        return joined(places)

    found = Aligned(
        [
            tuple(map(ids_of, places, var.aval.shape))
            for var, places in zip(eqn.outvars, axes.outs, strict=True)
        ],
        [joined(places) for places in axes.summed],
    )
    if name in EXACT:
        return EXACT[name](walk, eqn, ins, found)
    for places, ids in zip(axes.summed, found.summed, strict=True):
        walk.sum(ids, _adds(ins, places), name, ins)
    if axes.form == PRODUCT:
        walk.products.append(_multiplication(eqn, ins, axes, found))
    known = _moved if axes.form == VIEW else _zeros
    leaf = ins[0].leaf if name in VIEWS else None
    return [
        Value(var.aval.shape, ids, known(eqn, ins, axes, i), leaf)
        for i, (var, ids) in enumerate(
            zip(eqn.outvars, found.outs, strict=True)
        )
    ]


DRIVERS[Axes] = by_axes


def _adds(ins: list[Value], places: Places) -> Array:
    """Where the entries along an axis add anything but 0."""
    return functools.reduce(
        np.logical_and, (_line(~ins[i].known.zero, k) for i, k in places)
    )


def _line(entries: Array, axis: int) -> Array:
    return entries.any(tuple(k for k in range(entries.ndim) if k != axis))


def _multiplication(
    eqn: Any, ins: list[Value], axes: Axes, found: Aligned
) -> Multiplication:
    """All that are carried out; of one matrix of several the fullest counts."""
    over = [ins[i].shape[k] for ((i, k), *_) in axes.summed]
    whole = entries((*eqn.outvars[0].aval.shape, *over))
    some = ~ins[1].known.zero
    rest = tuple(k for k in range(some.ndim) if (1, k) not in axes.whole)
    share = some.mean(rest).max(initial=0)
    ids = (*found.outs[0], *found.summed)
    return Multiplication(whole, round(whole * float(share)), ids)


def _zeros(eqn: Any, ins: list[Value], axes: Axes, out: int) -> Known:
    """0 where all is 0 that an entry is made of."""
    aval = eqn.outvars[out].aval
    operands = axes.zero[out] if axes.zero else ()
    if not operands:
        return nothing(len(aval.shape), aval.dtype)
    reduced = {*axes.whole, *(p for places in axes.summed for p in places)}
    parts = []
    for i in operands:
        zero, to = ins[i].known.zero, _targets(axes, out, i, reduced)
        rest = tuple(k for k in range(zero.ndim) if k not in to)
        parts.append(_arranged(zero.all(rest), to, len(aval.shape)))
    one = np.logical_or if axes.form == PRODUCT else np.logical_and
    return zeros(functools.reduce(one, parts), aval.dtype)


def _moved(eqn: Any, ins: list[Value], axes: Axes, out: int) -> Known:
    """The same entries in other places."""
    known, to = ins[0].known, _targets(axes, out, 0, set())
    gone = tuple(k for k in range(len(known.shape)) if k not in to)
    rank = len(eqn.outvars[out].aval.shape)
    return known.map(lambda a: _arranged(a.squeeze(gone), to, rank))


def _targets(
    axes: Axes, out: int, operand: int, reduced: set[Any]
) -> dict[int, int]:
    """To which axis of an output each axis of an operand goes."""
    found = {
        k: to
        for to, places in enumerate(axes.outs[out])
        for i, k in places or ()
        if i == operand and (i, k) not in reduced
    }
    return dict(sorted(found.items()))


def _arranged(x: Array, to: dict[int, int], rank: int) -> Array:
    """Axes that are left, in their new order; others have size 1."""
    order = np.argsort([*to.values()])
    x, sizes = x.transpose(order), [1] * rank
    for axis, n in zip(sorted(to.values()), x.shape, strict=True):
        sizes[axis] = n
    return x.reshape(sizes)
