"""What a primitive does with the axes of its operands: a record for each.

Everything that goes through a program reads these: which positions are one unit, what
is constant, what a product costs, the smaller program, the uses of parameters. A
primitive without a record is not understood, and freezes what it reads.
"""

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple, TypeAlias, TypeVar

import numpy as np

Place: TypeAlias = tuple[int, int]
"""An axis of an operand: which operand, which axis."""

Places: TypeAlias = tuple[Place, ...]

POINTWISE, VIEW, PRODUCT = "pointwise", "view", "product"


def same_params(size: Callable[[int, int], int]) -> dict[str, Any]:
    """Nothing in the equation says how long an axis is."""
    del size
    return {}


class Axes(NamedTuple):
    """Axes that stay axes: aligned, summed over, or needed whole.

    ``outs`` says for each output and each of its axes where it comes from: some
    places, all of them position by position the same; ``()`` an axis that holds what
    no operand has, and can be cut at will; ``None`` one that stays as it is.
    """

    outs: Sequence[Sequence[Places | None]]
    summed: Sequence[Places] = ()  # contracted, those of one entry together
    whole: Sequence[Place] = ()  # may not be cut
    why: str = ""  # they may not
    # For each output operands that make it 0: where all entries are 0 that go into
    # one of its own (of a product: of one of the operands). (): nothing is known.
    zero: Sequence[Sequence[int]] = ()
    params: Callable[[Callable[[int, int], int]], dict[str, Any]] = same_params
    # POINTWISE: entry by entry, an axis along which nothing varies may have size 1;
    # VIEW: the same entries in other places; PRODUCT: of the first two operands.
    form: str = ""


class Moves(NamedTuple):
    """Positions that are chosen when the program is traced.

    Operands lie side by side along an axis, and ``outs`` says for each output which
    positions it takes of which axis, counted through all of them: -1 is the
    ``filling``. Axes that are not named are aligned.
    """

    outs: Sequence[dict[int, np.ndarray]]
    filling: int | None = None  # the operand, a scalar
    added: int | None = None  # an axis of size 1 that operands get before
    dropped: int | None = None  # an axis of size 1 that outputs lose after
    params: Callable[[Callable[[int, int], int]], dict[str, Any]] = same_params


Record: TypeAlias = Axes | Moves | None
RECORDS: dict[str, Callable[[Any], Record]] = {}


R = TypeVar("R", bound=Record)


def record(
    *names: str,
) -> Callable[[Callable[[Any], R]], Callable[[Any], R]]:
    """Registers the record of some primitives: a function of the equation."""

    def register(fn: Callable[[Any], R]) -> Callable[[Any], R]:
        RECORDS.update(dict.fromkeys(names, fn))
        return fn

    return register


def shapes_of(eqn: Any) -> list[tuple[int, ...]]:
    """The shapes of the operands."""
    return [tuple(getattr(v.aval, "shape", ())) for v in eqn.invars]


def whole_axes(operand: int, axes: Sequence[int]) -> list[Place]:
    """Some axes of one operand."""
    return [(operand, axis) for axis in axes]


def aligned(
    eqn: Any,
    operands: Sequence[int] = (0,),
    changed: Sequence[int] = (),
) -> tuple[Places | None, ...]:
    """Axes of an output that are those of some operands; ``changed`` ones stay."""
    rank = len(shapes_of(eqn)[operands[0]])
    return tuple(
        None if k in changed else tuple((i, k) for i in operands)
        for k in range(rank)
    )
