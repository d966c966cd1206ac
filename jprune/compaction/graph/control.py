"""Rules of equations that hold other programs."""

import itertools
from collections.abc import Iterable
from dataclasses import replace
from typing import Any

import numpy as np

from jprune.compaction.graph.constants import Known, nothing
from jprune.compaction.graph.walk import Value, Walk, rule, unknown
from jprune.jaxprs.shapes import entries, is_number
from jprune.jaxprs.versions import (
    Scan,
    read_cond,
    read_scan,
    read_solve,
    read_while,
)

MANY = 512  # layers at most that are walked one by one


@rule("cond")
def cond(walk: Walk, eqn: Any, ins: list[Value]) -> list[Value]:
    """Whatever branch is taken, its outputs have the same axes."""
    walk.consume(ins)
    walk.freeze("cond: the index", *ins[0].ids)
    plain = [_plain(value) for value in ins[1:]]
    runs, products, start = [], [], len(walk.products)
    for branch in read_cond(eqn):
        runs.append(walk.closed(branch, plain))
        products.append(walk.products[start:])
        del walk.products[start:]
    walk.most(products)
    outs = []
    for several in zip(*runs, strict=True):
        walk.consume(list(several))
        ids = tuple(
            walk.join("cond", *axis)
            for axis in zip(*(v.ids for v in several), strict=True)
        )
        known = several[0].known
        for other in several[1:]:
            known = _meet(known, other.known)
        outs.append(Value(several[0].shape, ids, known))
    return outs


@rule("while")
def while_(walk: Walk, eqn: Any, ins: list[Value]) -> list[Value]:
    """What goes round keeps its axes; it may hold anything."""
    loop = read_while(eqn)
    walk.consume(ins)
    test, fixed, start = loop.inputs(ins)
    carry = [_carried(walk, "while", v) for v in start]
    carry = [replace(v, known=_none(v)) for v in carry]
    (done,) = walk.closed(loop.test, [*map(_plain, test), *carry])
    walk.freeze("while: the condition", *done.ids)
    outs = walk.closed(loop.body, [*map(_plain, fixed), *carry])
    _same(walk, "while", carry, outs)
    return carry


@rule("custom_linear_solve")
def solve(walk: Walk, eqn: Any, ins: list[Value]) -> list[Value]:
    """What is found, and what a matrix makes of it: the right side again."""
    linear = read_solve(eqn)
    of_matvec, of_solve, _, right = linear.inputs([_plain(v) for v in ins])
    outs = walk.closed(linear.solve, of_solve + right)
    again = walk.closed(linear.matvec, of_matvec + outs)
    _same(walk, "custom_linear_solve", right, again)
    return outs


@rule("scan")
def scan(walk: Walk, eqn: Any, ins: list[Value]) -> list[Value]:
    """Layer by layer, so that each may have units of its own."""
    loop = read_scan(eqn)
    if loop.length == 0:  # nothing would say what goes with the carry
        return unknown(walk, eqn, ins)
    fixed, carry, stacks = loop.inputs(ins)
    # A carry is a use like any other; entries of a stack are used in the body.
    walk.consume([replace(v, site=None) for v in carry])
    fixed = [replace(v, site=None) for v in map(walk.unstack, fixed)]
    carry = [walk.unstack(_carried(walk, "scan", v)) for v in carry]
    for x in stacks:
        walk.freeze("scan over the axis", x.ids[0])
    length = loop.length
    alike = (
        not is_number(length) or length > MANY or not any(map(_differs, stacks))
    )
    if alike and length != 1:  # no leaf is one layer's
        walk.consume(stacks)
        stacks = list(map(_plain, stacks))
    kept: list[list[Value]] = []
    for layer in _layers(loop):
        entry_of = [_layer(x, layer, alike) for x in stacks]
        start = len(walk.products)
        outs = walk.closed(loop.body, fixed + carry + entry_of)
        walk.consume(outs)
        after, entry = loop.outputs(outs)
        kept.append(entry)
        _same(walk, "scan", carry, after)
        now = [v.known for v in after]
        before = [v.known for v in carry]
        if alike:  # go round until nothing changes: it holds for all layers
            now = list(map(_meet, before, now))
        carry = [replace(v, known=k) for v, k in zip(carry, now, strict=True)]
        if alike and all(map(_equal, before, now)):
            for product in walk.products[start:]:
                product.times *= entries([length])
            break
        if alike:
            del walk.products[start:]
    outs = list(carry)
    for several in zip(*kept, strict=True):
        ids = [
            walk.join("scan", *axis)
            for axis in zip(*(v.ids for v in several), strict=True)
        ]
        shape = (length, *several[0].shape)
        known = nothing(len(shape), several[0].known.dtype)
        outs.append(Value(shape, (None, *ids), known))
    return outs


def _layers(loop: Scan) -> Iterable[int]:
    """In their order; of a symbolic length as many as are asked for."""
    if not is_number(loop.length):
        return itertools.count()
    layers = range(loop.length)
    return reversed(layers) if loop.reverse else layers


def _differs(x: Value) -> bool:
    """Whether what is in a stack is more than one layer repeated."""
    return x.known.shape[0] > 1 or any(
        ids is not None and ids.ndim == 3 for ids in x.ids
    )


def _layer(x: Value, layer: int, alike: bool) -> Value:
    """One entry of a stack; where all are walked as one, what they share."""
    known, at = x.known, layer if x.known.shape[0] > 1 else 0
    if alike and known.shape[0] > 1:
        first = known.map(lambda a: a[0])
        same = (known.flags & (known.value == first.value)).all(0)
        known = Known(same, np.where(same, first.value, first.value * 0))
    else:
        known = known.map(lambda a: a[at])
    ids = tuple(s if s is None or s.ndim == 2 else s[layer] for s in x.ids[1:])
    leaf = None
    if x.leaf is not None:
        leaf = (x.leaf[0], (*x.leaf[1], layer))
    return Value(x.shape[1:], ids, known, leaf)


def _plain(value: Value) -> Value:
    """A value whose origin does not count."""
    return replace(value, leaf=None, site=None)


def _carried(walk: Walk, why: str, value: Value) -> Value:
    """What enters a loop, with ids for every axis."""
    value = _plain(walk.unstack(value))
    ids = [
        walk.new(n) if s is None else s
        for n, s in zip(value.shape, value.ids, strict=True)
    ]
    return replace(value, ids=tuple(ids))


def _same(walk: Walk, why: str, carry: list[Value], after: list[Value]) -> None:
    """What leaves a loop has the axes of what enters it."""
    for before, out in zip(carry, after, strict=True):
        for pair in zip(before.ids, out.ids, strict=True):
            walk.join(why, *pair)


def _none(value: Value) -> Known:
    return nothing(len(value.shape), value.known.dtype)


def _meet(a: Known, b: Known) -> Known:
    """What is known of both, and the same."""
    same = a.flags & b.flags & (a.value == b.value)
    value = np.broadcast_to(a.value, same.shape)
    return Known(same, np.where(same, value, np.zeros_like(value)))


def _equal(a: Known, b: Known) -> bool:
    return bool((a.flags == b.flags).all())
