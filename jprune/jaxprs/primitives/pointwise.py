"""Records of what works entry by entry, and of what needs no parameter."""

from typing import Any

from jprune.jaxprs.records import (
    POINTWISE,
    Axes,
    Places,
    record,
    shapes_of,
)

ELEMENTWISE = [
    "abs",
    "acos",
    "acosh",
    "add",
    "add_any",
    "and",
    "asin",
    "asinh",
    "atan",
    "atan2",
    "atanh",
    "bessel_i0e",
    "bessel_i1e",
    "cbrt",
    "ceil",
    "clamp",
    "clz",
    "complex",
    "conj",
    "convert_element_type",
    "copy",
    "copy_p",
    "cos",
    "cosh",
    "digamma",
    "div",
    "eq",
    "erf",
    "erf_inv",
    "erfc",
    "exp",
    "exp2",
    "expm1",
    "floor",
    "ge",
    "gt",
    "igamma",
    "igamma_grad_a",
    "igammac",
    "imag",
    "integer_pow",
    "is_finite",
    "le",
    "lgamma",
    "log",
    "log1p",
    "log2",
    "logistic",
    "lt",
    "max",
    "min",
    "mul",
    "mulhi",
    "name",
    "ne",
    "neg",
    "nextafter",
    "not",
    "one_minus_square",
    "or",
    "polygamma",
    "population_count",
    "pow",
    "real",
    "reduce_precision",
    "regularized_incomplete_beta",
    "rem",
    "round",
    "rsqrt",
    "select_n",
    "shift_left",
    "shift_right_arithmetic",
    "shift_right_logical",
    "sign",
    "sin",
    "sinh",
    "sqrt",
    "square",
    "stop_gradient",
    "sub",
    "tan",
    "tanh",
    "xor",
    "zeta",
]
RANDOM = [
    "random_bits",
    "random_clone",
    "random_fold_in",
    "random_seed",
    "random_split",
    "random_unwrap",
    "random_wrap",
    "rng_bit_generator",
    "threefry2x32",
]


PLACEMENT = [
    "device_put",
    "layout_constraint",
    "mesh_cast",
    "optimization_barrier",
    "pvary",
    "reshard",
    "sharding_constraint",
]


@record(*ELEMENTWISE)
def elementwise(eqn: Any) -> Axes:
    """Operands are aligned, but for axes of size 1 that broadcast."""
    shape, name = eqn.outvars[0].aval.shape, eqn.primitive.name
    shapes = shapes_of(eqn)
    outs: list[Places] = []
    whole = []
    for axis, size in enumerate(shape):
        here = [i for i, s in enumerate(shapes) if len(s) == len(shape)]
        same = [i for i in here if shapes[i][axis] == size]
        # One position can't be lost and be everywhere.
        whole += [(i, axis) for i in here if i not in same]
        outs.append(tuple((i, axis) for i in same))
    return Axes(
        [outs],
        whole=whole,
        why=f"{name}: a size-1 axis broadcasts",
        form=POINTWISE,
    )


@record("bitcast_convert_type")
def bitcast(eqn: Any) -> Axes:
    """Of another width numbers are made of several, or become several."""
    (old,), new = shapes_of(eqn), eqn.outvars[0].aval.shape
    outs: list[Places | None] = [((0, k),) for k in range(len(old))]
    whole = [(0, k) for k in range(len(new), len(old))]
    outs = [*outs, None][: len(new)]
    why = "bitcast_convert_type: the parts of a number"
    return Axes([outs], whole=whole, why=why)


@record(*PLACEMENT)
def placement(eqn: Any) -> Axes:
    """The same values."""
    shapes = shapes_of(eqn)
    outs = [
        [((i, k),) for k in range(len(shape))] for i, shape in enumerate(shapes)
    ]
    return Axes(outs, form=POINTWISE)


@record(*RANDOM)
def random(eqn: Any) -> Axes:
    """Drawn at dense size; what is left is sliced from that."""
    whole = [
        (i, k)
        for i, shape in enumerate(shapes_of(eqn))
        for k in range(len(shape))
    ]
    why = f"{eqn.primitive.name}: random bits"
    return Axes(_new(eqn), whole=whole, why=why)


@record("iota", "empty", "empty2", "dim_as_value")
def new(eqn: Any) -> Axes:
    """It reads nothing."""
    return Axes(_new(eqn))


def _new(eqn: Any) -> list[list[Places]]:
    return [[()] * len(v.aval.shape) for v in eqn.outvars]
