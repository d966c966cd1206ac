"""Weights of rows, followed along the axes of the batch."""

import math
from collections.abc import Iterator, Sequence
from typing import Any, TypeAlias

import jax.numpy as jnp
import numpy as np

from jprune.calibration.rows import Matrices
from jprune.jaxprs.primitives import record_of
from jprune.jaxprs.records import Axes, Moves, shapes_of
from jprune.jaxprs.shapes import groups

Part: TypeAlias = tuple[int | None, int]
"""An axis of the weights, or None for one that they do not have, and its size."""

Label: TypeAlias = tuple[Part, ...]
"""What an axis is made of; (): nothing that is known."""


def labels_of(shape: Sequence[int], weights: Any) -> tuple[Label, ...]:
    """The labels of an argument: its first axes are those of the weights."""
    sizes = weights.shape
    found: list[Label] = [()] * len(shape)
    if not shape or shape[0] != sizes[0]:
        return tuple(found)
    for k, size in enumerate(sizes):
        if k < len(shape) and shape[k] == size:
            found[k] = ((k, size),)
    return tuple(found)


def labels_after(
    eqn: Any, labels: Sequence[tuple[Label, ...]]
) -> list[tuple[Label, ...]]:
    """The labels of an equation's outputs, of those of its operands."""
    outs = [tuple(getattr(v.aval, "shape", ())) for v in eqn.outvars]
    none: list[tuple[Label, ...]] = [((),) * len(shape) for shape in outs]
    if not any(any(x) for x in labels):
        return none
    if eqn.primitive.name == "reshape":
        (old, *_) = shapes_of(eqn)
        return [_reshaped(old, outs[0], labels[0])]
    record = record_of(eqn)
    if isinstance(record, Axes):
        return [
            tuple(_first(places, labels) for places in axes)
            for axes in record.outs
        ]
    if isinstance(record, Moves):
        found: list[tuple[Label, ...]] = []
        for taken, shape in zip(record.outs, outs, strict=True):
            rank = len(shape)
            if record.added is not None or record.dropped is not None:
                found.append(((),) * rank)
                continue
            found.append(
                tuple(
                    ()
                    if k in taken
                    else _first([(i, k) for i in range(len(labels))], labels)
                    for k in range(rank)
                )
            )
        return found
    return none


def _first(places: Any, labels: Sequence[tuple[Label, ...]]) -> Label:
    for operand, axis in places or ():
        own = labels[operand] if operand < len(labels) else ()
        if axis < len(own) and own[axis]:
            result: Label = own[axis]
            return result
    return ()


def _reshaped(
    old: Sequence[int], new: Sequence[int], labels: tuple[Label, ...]
) -> tuple[Label, ...]:
    found: list[Label] = [()] * len(new)
    for before, after in groups(old, new):
        if not any(labels[k] for k in before if k < len(labels)):
            continue
        parts = [p for k in before for p in labels[k] or ((None, old[k]),)]
        for k, taken in zip(
            after, _dealt(parts, [new[k] for k in after]), strict=False
        ):
            found[k] = taken
    return tuple(found)


def _dealt(parts: list[Part], sizes: Sequence[int]) -> Iterator[Label]:
    """Parts in turn for each axis; () once they do not divide."""
    left = [part for part in parts if part[1] != 1]
    for size in sizes:
        taken: list[Part] = []
        while left and math.prod(n for _, n in taken) < size:
            taken.append(left.pop(0))
        if math.prod(n for _, n in taken) != size:
            return
        known = any(axis is not None for axis, _ in taken)
        yield tuple(taken) if known else ()


def row_weights(
    weights: Any,
    labels: tuple[Label, ...],
    how: Matrices,
    path: str,
) -> Any:
    """The weights of the rows of a product, ``[M]``.

    Raises:
      ValueError: The rows are not those of the batch, each once.
    """
    parts: list[Part] = []
    for axis, size in zip(how.axes, how.row_sizes, strict=True):
        label = labels[axis] if 0 <= axis < len(labels) else ()
        parts += label or ((None, size),)
    known = [axis for axis, _ in parts if axis is not None]
    if sorted(known) != list(range(weights.ndim)):
        sizes = "x".join(map(str, weights.shape))
        raise ValueError(
            f"`weights`: the rows that {path!r} is multiplied with do not go "
            f"along the axes of the weights ({sizes}), each once; `where=` can "
            "leave the leaf out."
        )
    weights = jnp.transpose(weights, known)
    shape = [1 if axis is None else n for axis, n in parts]
    weights = weights.reshape(shape)
    whole = jnp.broadcast_to(weights, [n for _, n in parts])
    return whole.reshape(int(np.prod(how.row_sizes, dtype=int)))
