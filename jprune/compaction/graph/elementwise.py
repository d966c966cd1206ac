"""Rules of elementwise operations, and of values that need no parameter."""

from typing import Any

import numpy as np

from jprune.compaction.graph import constants as constants
from jprune.compaction.graph.constants import Known, nothing
from jprune.compaction.graph.walk import VIEWS, Value, Walk, free, rule

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
    "bitcast_convert_type",
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
    "igammac",
    "imag",
    "integer_pow",
    "is_finite",
    "le",
    "lgamma",
    "log",
    "log1p",
    "logistic",
    "lt",
    "max",
    "min",
    "mul",
    "name",
    "ne",
    "neg",
    "nextafter",
    "not",
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


@rule(*ELEMENTWISE)
def elementwise(walk: Walk, eqn: Any, ins: list[Value]) -> list[Value]:
    """Operands are aligned position by position."""
    name, aval = eqn.primitive.name, eqn.outvars[0].aval
    shape, ids = aval.shape, []
    for axis, size in enumerate(shape):
        same = [v.ids[axis] for v in ins if _has(v, shape, axis)]
        for v in ins:  # one position can't be lost and be everywhere
            if v.shape and v.shape[axis] != size:
                walk.freeze(f"{name}: a size-1 axis broadcasts", v.ids[axis])
        ids.append(walk.join(name, *same))
    known = nothing(len(shape), aval.dtype)
    if name not in ("bitcast_convert_type", "name") and _plain(aval, ins):
        known = constants.elementwise(
            eqn, [v.known for v in ins], len(shape), aval.dtype
        )
    if name in ("add", "add_any"):
        for x, y in (ins, ins[::-1]):
            if x.site is not None and y.leaf is not None:
                x.site.bias = (*y.leaf, y.known.shape)
    leaf = ins[0].leaf if name in VIEWS else None
    return [Value(shape, tuple(ids), known, leaf)]


def _has(value: Value, shape: tuple[int, ...], axis: int) -> bool:
    return len(value.shape) == len(shape) and value.shape[axis] == shape[axis]


def _plain(aval: Any, ins: list[Value]) -> bool:
    """Whether values are numbers: keys have constants that we don't follow."""
    return isinstance(aval.dtype, np.dtype) and all(
        len(v.known.shape) in (0, len(aval.shape)) for v in ins
    )


@rule(*RANDOM)
def random(walk: Walk, eqn: Any, ins: list[Value]) -> list[Value]:
    """Drawn at dense size; what is left is sliced from that."""
    for value in ins:
        walk.freeze(f"{eqn.primitive.name}: random bits", *value.ids)
    return [_dense(var.aval) for var in eqn.outvars]


@rule("iota")
def iota(walk: Walk, eqn: Any, ins: list[Value]) -> list[Value]:
    """Counts along one axis."""
    del walk, ins  # it reads nothing
    aval, axis = eqn.outvars[0].aval, eqn.params["dimension"]
    shape = [1] * len(aval.shape)
    shape[axis] = aval.shape[axis]
    known = constants.constant(np.arange(shape[axis], dtype=aval.dtype))
    return [free(known.map(lambda x: x.reshape(shape)), aval.shape)]


@rule("empty", "empty2")
def empty(walk: Walk, eqn: Any, ins: list[Value]) -> list[Value]:
    """Whatever is there."""
    del walk, ins  # it reads nothing
    return [_dense(var.aval) for var in eqn.outvars]


@rule("optimization_barrier", "sharding_constraint", "device_put")
def identity(walk: Walk, eqn: Any, ins: list[Value]) -> list[Value]:
    """The same values."""
    del walk, eqn
    return [Value(v.shape, v.ids, v.known) for v in ins]


def _dense(aval: Any) -> Value:
    known: Known = nothing(len(aval.shape), aval.dtype)
    return free(known, aval.shape)
