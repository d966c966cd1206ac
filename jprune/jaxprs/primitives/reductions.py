"""Records of reductions, and of all that needs an axis whole."""

from typing import Any

from jprune.jaxprs.records import (
    Axes,
    Places,
    aligned,
    record,
    shapes_of,
    whole_axes,
)


@record("reduce_sum")
def reduce_sum(eqn: Any) -> Axes:
    """Exact without the positions that add 0: divisors are literals."""
    axes = eqn.params["axes"]
    summed = [((0, axis),) for axis in axes]
    return Axes([_rest(eqn, axes)], summed, zero=[[0]])


@record(
    *("reduce_max", "reduce_min", "reduce_prod", "reduce_and", "reduce_or"),
    *("reduce_xor", "argmax", "argmin"),
)
def reduce_other(eqn: Any) -> Axes:
    """What is removed could have decided the result."""
    axes, name = eqn.params["axes"], eqn.primitive.name
    empty = any(shapes_of(eqn)[0][axis] == 0 for axis in axes)
    return Axes(
        [_rest(eqn, axes)],
        whole=whole_axes(0, axes),
        why=f"{name} over the axis",
        zero=[[] if empty or name.startswith("arg") else [0]],
    )


def _rest(eqn: Any, axes: Any, operand: int = 0) -> list[Places]:
    rank = len(shapes_of(eqn)[operand])
    return [((operand, k),) for k in range(rank) if k not in axes]


@record("psum", "pmax", "pmin")
def collective(eqn: Any) -> Axes:
    """Over axes of the operands that ``vmap`` mapped, or over devices."""
    axes, name = eqn.params["axes"], eqn.primitive.name
    axes = [axis for axis in axes if isinstance(axis, int)]
    many = range(len(eqn.invars))
    every = [(i, axis) for i in many for axis in axes]
    summed: list[Places] = [(place,) for place in every]
    total = name == "psum"
    return Axes(
        [_rest(eqn, axes, i) for i in many],
        summed if total else [],
        whole=[] if total else every,
        why=f"{name} over the axis",
        zero=[[i] for i in many],
    )


@record("cumsum", "cumprod", "cummax", "cummin", "cumlogsumexp")
def cumulative(eqn: Any) -> Axes:
    """What is removed would have been carried on."""
    name, axis = eqn.primitive.name, eqn.params["axis"]
    return Axes(
        [aligned(eqn)],
        whole=[(0, axis)],
        why=f"{name} over the axis",
        zero=[[] if name == "cumlogsumexp" else [0]],
    )


@record("sort")
def sort(eqn: Any) -> Axes:
    """Positions of the sorted axis change places at run time."""
    many, axis = range(len(eqn.invars)), eqn.params["dimension"]
    return Axes(
        [aligned(eqn, many)] * len(many),
        whole=[(i, axis) for i in many],
        why="sort over the axis",
        zero=[[i] for i in many],
    )


@record("top_k")
def top_k(eqn: Any) -> Axes:
    """What is removed could have been among the best."""
    (shape,) = shapes_of(eqn)
    axis = eqn.params.get("axis", -1) % len(shape)
    places: list[Places] = [((0, k),) for k in range(len(shape))]
    places[axis] = ()
    why = "top_k over the axis"
    return Axes([places] * 2, whole=[(0, axis)], why=why, zero=[[0], []])


@record("reduce_window_max", "reduce_window_min", "reduce_window_sum")
def reduce_window(eqn: Any) -> Axes:
    """Axes without a window pass."""
    p, (shape,) = eqn.params, shapes_of(eqn)
    name, out = eqn.primitive.name, eqn.outvars[0].aval.shape
    windows, padding = p["window_dimensions"], p["padding"]
    plain = all(d == 1 for d in (*p["base_dilation"], *p["window_dilation"]))
    inside = plain and all(
        max(ends) < size for ends, size in zip(padding, windows, strict=True)
    )  # every window holds an entry
    changed = [
        k
        for k, n in enumerate(shape)
        if windows[k] != 1 or out[k] != n or any(padding[k])
    ]
    return Axes(
        [aligned(eqn, changed=changed)],
        whole=whole_axes(0, changed),
        why=f"{name}: windows over the axis",
        zero=[[0] if inside or name == "reduce_window_sum" else []],
    )


@record("triangular_solve")
def triangular_solve(eqn: Any) -> Axes:
    """Columns (or rows, on the right) of the right side pass."""
    a, b = shapes_of(eqn)
    solved = len(b) - (2 if eqn.params["left_side"] else 1)
    places: list[Places] = [((0, k), (1, k)) for k in range(len(b) - 2)]
    places += [((1, k),) for k in (len(b) - 2, len(b) - 1)]
    return Axes(
        [places],
        whole=[*whole_axes(0, range(len(a) - 2, len(a))), (1, solved)],
        why="triangular_solve over the axis",
        zero=[[1]],
    )


@record(
    *("cholesky", "eig", "eigh", "geqrf", "householder_product", "lu", "qr"),
    *("lu_pivots_to_permutation", "svd", "tridiagonal_solve"),
)
def matrices(eqn: Any) -> Axes:
    """Matrices in the last axes; others are batches of them."""
    shapes, name = shapes_of(eqn), eqn.primitive.name
    vectors = name == "lu_pivots_to_permutation"
    batch = len(shapes[0]) - (1 if vectors else 2)
    if name == "tridiagonal_solve":
        batch = len(shapes[0]) - 1
    places: list[Places] = [
        tuple((i, k) for i in range(len(shapes))) for k in range(batch)
    ]
    outs = [
        (*places, *[None] * (len(v.aval.shape) - batch)) for v in eqn.outvars
    ]
    whole = [
        (i, k)
        for i, shape in enumerate(shapes)
        for k in range(batch, len(shape))
    ]
    return Axes(outs, whole=whole, why=f"{name} over the axis")


@record("fft")
def fft(eqn: Any) -> Axes:
    """Every output reads the whole of the transformed axes."""
    rank = len(shapes_of(eqn)[0])
    last = range(rank - len(eqn.params["fft_lengths"]), rank)
    return Axes(
        [aligned(eqn, changed=last)],
        whole=whole_axes(0, last),
        why="fft over the axis",
        zero=[[0]],
    )
