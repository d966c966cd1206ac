"""Records of products: what is contracted, and what makes outputs."""

from typing import Any

from jprune.jaxprs.records import (
    PRODUCT,
    Axes,
    Places,
    Record,
    record,
    shapes_of,
    whole_axes,
)


@record("dot_general")
def dot_general(eqn: Any) -> Axes:
    """Contracted axes are summed over, batch axes aligned."""
    over, batch = eqn.params["dimension_numbers"]
    return _product(eqn, over, batch)


@record("ragged_dot_general")
def ragged_dot(eqn: Any) -> Record:
    """Rows of the first operand, each with the matrix of its group."""
    p = eqn.params["ragged_dot_dimension_numbers"]
    over, batch = p.dot_dimension_numbers
    (rows,) = p.lhs_ragged_dimensions
    if rows in (*over[0], *batch[0]) or len(p.rhs_group_dimensions) != 1:
        return None  # sums over groups, or rows of a batch: rarely met
    (group,) = p.rhs_group_dimensions
    sizes = len(shapes_of(eqn)[2])
    return _product(eqn, over, batch, left=[], right=[group])._replace(
        whole=[(0, rows), (1, group), *whole_axes(2, range(sizes))],
        why="ragged_dot_general: rows belong to groups",
    )


def _product(
    eqn: Any,
    over: Any,
    batch: Any,
    left: Any = (),
    right: Any = (),
) -> Axes:
    """Batch axes, what is free on the left, what is free on the right."""
    a, b = shapes_of(eqn)[:2]
    pairs = [tuple(zip(*axes, strict=True)) for axes in (over, batch)]
    summed, alike = ([((0, i), (1, j)) for i, j in axes] for axes in pairs)
    outs: list[Places] = list(alike)
    for operand, (shape, gone) in enumerate(((a, left), (b, right))):
        used = {*over[operand], *batch[operand], *gone}
        rest = [k for k in range(len(shape)) if k not in used]
        outs += [((operand, k),) for k in rest]
    return Axes([outs], summed, zero=[[0, 1]], form=PRODUCT)


@record("conv_general_dilated")
def conv(eqn: Any) -> Record:
    """Input features are summed over; windows stay as they are.

    Of a grouped convolution this is what it would be without groups: how features
    and groups go together is told where that is needed.
    """
    p = eqn.params
    if p["batch_group_count"] != 1:
        return None
    lhs, rhs, out = p["dimension_numbers"]
    places: list[Places | None] = [None] * len(lhs)
    places[out[0]], places[out[1]] = ((0, lhs[0]),), ((1, rhs[0]),)
    return Axes(
        [places],
        [((0, lhs[1]), (1, rhs[1]))],
        whole=[*whole_axes(0, lhs[2:]), *whole_axes(1, rhs[2:])],
        why="conv_general_dilated: windows over the axis",
        form=PRODUCT,
    )
