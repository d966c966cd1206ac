"""The same program on fewer positions.

Every value knows its dense shape and which positions of each axis are left. An
operation on what is smaller is the dense one with its shapes adapted, as its record
says (:mod:`jprune.jaxprs.records`); where a dense operand meets a smaller one, it is
sliced.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any, NoReturn, TypeAlias

import jax.numpy as jnp
import numpy as np

from jprune.compaction.graph.constants import Array
from jprune.jaxprs.primitives import record_of
from jprune.jaxprs.program import interpret
from jprune.jaxprs.versions import evaluate

# [layers or 1, n] bool, the positions that are left; None: all.
Mask: TypeAlias = Array | None


@dataclass(frozen=True)
class Small:
    """A value without the positions that are gone.

    An axis along which nothing varies may have size 1 in ``x``.
    """

    x: Any
    shape: tuple[int, ...]  # dense
    masks: tuple[Mask, ...]

    def size(self, axis: int) -> int:
        """How many positions are left."""
        mask = self.masks[axis]
        return self.shape[axis] if mask is None else int(mask[0].sum())

    @property
    def sizes(self) -> tuple[int, ...]:
        """The shape that is left."""
        return tuple(map(self.size, range(len(self.shape))))

    def full(self) -> Any:
        """The array of the shape that is left."""
        if np.shape(self.x) == self.sizes:
            return self.x
        return jnp.broadcast_to(self.x, self.sizes)

    def solid(self) -> "Small":
        """The same with no axis left out."""
        return replace(self, x=self.full())


def dense(x: Any) -> Small:
    """Nothing is gone."""
    return Small(x, np.shape(x), (None,) * np.ndim(x))


def tidy(mask: Mask) -> Mask:
    """None where nothing is gone, one row where all layers are alike."""
    if mask is None or mask.all():
        return None
    return mask[:1] if (mask == mask[0]).all() else mask


def both(a: Mask, b: Mask) -> Mask:
    """The positions that are left in both."""
    if a is None or b is None:
        return b if a is None else a
    return a if a is b else a & b


def same(a: Mask, b: Mask) -> bool:
    """Whether two masks are equal."""
    if a is None or b is None:
        return a is b
    return a is b or np.array_equal(a, b)


class Unsupported(ValueError):
    """A program that can't be made smaller in the way that was planned."""


Rule = Callable[["Rewrite", Any, list[Small]], list[Small]]
RULES: dict[str, Rule] = {}  # of primitives that need more than a record
Driver = Callable[["Rewrite", Any, list[Small], Any], list[Small]]
DRIVERS: dict[type, Driver] = {}  # of the kinds of records


def rule(*names: str) -> Callable[[Rule], Rule]:
    """Registers the rule of some primitives."""

    def register(fn: Rule) -> Rule:
        RULES.update(dict.fromkeys(names, fn))
        return fn

    return register


@dataclass
class Rewrite:
    """Evaluates a jaxpr; inside a scan, ``layer`` is the one it is at."""

    layer: Any = None

    def closed(self, program: Any, inputs: list[Small]) -> list[Small]:
        """The outputs of a program."""
        return interpret(program, inputs, dense, self._equation)

    def _equation(self, eqn: Any, ins: list[Small]) -> list[Small]:
        name = eqn.primitive.name
        if name in RULES:
            return RULES[name](self, eqn, ins)
        record = record_of(eqn)
        if record is None:
            return as_it_is(self, eqn, ins)
        return DRIVERS[type(record)](self, eqn, ins, record)

    def places(self, mask: Array) -> Any:
        """The positions that are left, counted in the dense axis."""
        places = np.stack([np.flatnonzero(row) for row in mask])
        return places[0] if len(mask) == 1 else jnp.asarray(places)[self.layer]

    def cut(self, value: Small, masks: Sequence[Mask]) -> Small:
        """The value with these positions left of each axis."""
        x = value.x
        for axis, (have, want) in enumerate(
            zip(value.masks, masks, strict=True)
        ):
            if same(have, want) or (
                np.shape(x)[axis] == 1 and value.shape[axis] > 1
            ):
                continue
            if want is None or (have is not None and (want & ~have).any()):
                raise Unsupported(f"positions of axis {axis} are missing")
            places = self.places(want)
            if have is not None and max(len(have), len(want)) == 1:
                places = np.flatnonzero(want[0][have[0]])
            elif have is not None:
                places = jnp.searchsorted(self.places(have), places)
            x = jnp.take(x, places, axis)
        return Small(x, value.shape, tuple(masks))

    def align(self, values: list[Small]) -> list[Small]:
        """Values of one rank, with the same positions left; sizes 1 stay."""
        rank = max(len(v.shape) for v in values)
        masks: list[Mask] = [None] * rank
        for v in values:
            for k, mask in enumerate(v.masks):
                masks[k] = both(masks[k], mask)
        found = []
        for v in values:
            wanted = [
                None if v.shape[k] == 1 else masks[k]
                for k in range(len(v.shape))
            ]
            found.append(self.cut(v, wanted))
        return found


def is_dense(values: Sequence[Small]) -> bool:
    """Whether nothing is gone from any."""
    return all(mask is None for v in values for mask in v.masks)


def as_it_is(rewrite: Rewrite, eqn: Any, ins: list[Small]) -> list[Small]:
    """No rule: only for what is dense."""
    del rewrite  # nothing is sliced
    if not is_dense(ins):
        refuse(eqn)
    return list(map(dense, evaluate(eqn, [v.full() for v in ins])))


def refuse(eqn: Any, why: str = "") -> NoReturn:
    """The equation can't be carried out on what is left."""
    name = eqn.primitive.name
    raise Unsupported(
        f"{name} of what has been made smaller{why and ': '}{why}"
    )


def product(masks: Sequence[Mask], shape: Sequence[int]) -> Array:
    """``[layers, *shape]``: what is left of several axes together."""
    found = np.ones((1, *shape), bool)
    for axis, mask in enumerate(masks):
        if mask is not None:
            wide = [len(mask)] + [1] * len(shape)
            wide[axis + 1] = shape[axis]
            found = found & mask.reshape(wide)
    return found


def factors(left: Array) -> list[Mask]:
    """The masks of axes whose product is left; refused if it is none."""
    axes = range(1, left.ndim)
    masks = [left.any(tuple(k for k in axes if k != axis)) for axis in axes]
    if not np.array_equal(
        product(masks, left.shape[1:]), np.broadcast_to(left, left.shape)
    ):
        raise Unsupported("what is left is no product of axes")
    return [tidy(mask) for mask in masks]
