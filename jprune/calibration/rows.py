"""What a product multiplies, as matrices: rows of inputs, and kernels."""

import math
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from jprune._core.trees import at_least_float32
from jprune.calibration.values import Data, View


class Matrices(NamedTuple):
    """How operands become ``[G, M, K]`` and ``[G, K, N]``."""

    view: View  # of the kernels, [G, K, N]
    rows: Callable[[Any], Any]  # of the inputs: [G, M, K]
    how: Any  # what the rows depend on, beside the inputs
    axes: tuple[int, ...]  # of the inputs, that rows go along; -1: of windows
    row_sizes: tuple[int, ...]
    made: tuple[int | None, ...]  # of the outputs: axes of (G, N), counted
    sizes: tuple[int, ...]  # of those
    # How many rows each group has, in turn, where each row has one group's kernel.
    group_sizes: Data | None = None


def matrices(eqn: Any, side: int, view: View) -> Matrices | None:
    """A product of whose operands one is a view; None: it is not understood."""
    if view.sizes != view.shape or 0 in view.shape:
        return None  # broadcast: the same kernel for several products
    name = eqn.primitive.name
    if name == "dot_general":
        return _dot(eqn, side, view)
    if name == "conv_general_dilated" and side == 1:
        return _conv(eqn, view)
    return None


def ragged(eqn: Any, view: View, sizes: Data) -> Matrices | None:
    """Rows that lie group by group, each multiplied with its group's kernel."""
    p = eqn.params["ragged_dot_dimension_numbers"]
    if view.sizes != view.shape or 0 in view.shape:
        return None
    if p.dot_dimension_numbers != (((1,), (1,)), ((), ())):
        return None
    if (*p.lhs_ragged_dimensions, *p.rhs_group_dimensions) != (0, 0):
        return None
    many = eqn.invars[0].aval.shape[0]
    return Matrices(
        view,
        lambda x: at_least_float32(x)[None],
        ("ragged", id(sizes)),
        (0,),
        (many,),
        (None, None),
        (view.shape[0], view.shape[2]),
        sizes,
    )


def _dot(eqn: Any, side: int, view: View) -> Matrices:
    over, batch = eqn.params["dimension_numbers"]
    x_shape = eqn.invars[1 - side].aval.shape
    own, other = (over[side], batch[side]), (over[1 - side], batch[1 - side])
    free = [k for k in range(len(view.shape)) if k not in (*own[0], *own[1])]
    rest = [k for k in range(len(x_shape)) if k not in (*other[0], *other[1])]
    order = (*own[1], *own[0], *free)
    sizes = tuple(
        math.prod(view.shape[k] for k in ks) for ks in (own[1], own[0], free)
    )
    kernel = view
    if order != tuple(range(len(order))):
        shape = [view.shape[k] for k in order]
        kernel = kernel.then("transpose", order, shape=shape)
    kernel = kernel.then("reshape", sizes, shape=sizes)
    inputs = (*other[1], *rest, *other[0])
    row_sizes = tuple(x_shape[k] for k in rest)

    def rows(x: Any) -> Any:
        x = jnp.transpose(at_least_float32(x), inputs)
        return x.reshape(sizes[0], math.prod(row_sizes), sizes[1])

    many = len(own[1])
    mine: list[int | None] = [*range(many, many + len(free))]
    left: list[int | None] = [None] * len(rest)
    made = [*range(many), *(left + mine if side else mine + left)]
    return Matrices(
        kernel,
        rows,
        ("dot", inputs, sizes[:2]),
        tuple(rest),
        row_sizes,
        tuple(made),
        tuple(view.shape[k] for k in (*own[1], *free)),
    )


def _conv(eqn: Any, view: View) -> Matrices | None:
    p = eqn.params
    if p["batch_group_count"] != 1:
        return None
    lhs, rhs, out = p["dimension_numbers"]
    outs, ins, *window = (view.shape[k] for k in rhs)
    groups = p["feature_group_count"]
    many = ins * math.prod(window)
    kernel = view
    if tuple(rhs) != tuple(range(len(rhs))):
        kernel = kernel.then(
            "transpose", tuple(rhs), shape=[view.shape[k] for k in rhs]
        )
    shape = groups, outs // groups, many
    kernel = kernel.then("reshape", shape, shape=shape)
    kernel = kernel.then(
        "transpose", (0, 2, 1), shape=(groups, many, outs // groups)
    )
    sizes = eqn.outvars[0].aval.shape
    after = [sizes[k] for k in out[2:]]
    how = (
        *(tuple(lhs), groups, tuple(window), tuple(after)),
        *(tuple(p["window_strides"]), tuple(p["padding"])),
        *(tuple(p["lhs_dilation"]), tuple(p["rhs_dilation"])),
    )
    made: list[int | None] = [None] * len(out)
    made[out[1]] = 0
    return Matrices(
        kernel,
        lambda x: _patches(x, how),
        how,
        (lhs[0], *([-1] * len(window))),
        (sizes[out[0]], *after),
        tuple(made),
        (outs,),
    )


def _patches(x: Any, how: Any) -> Any:
    """``[G, M, K]``: what each window sees, padding included."""
    order, groups, window, after, strides, padding, lhs, rhs = how
    x = jnp.transpose(at_least_float32(x), order)
    ends = [
        (low, high, d - 1) for (low, high), d in zip(padding, lhs, strict=True)
    ]
    x = lax.pad(x, np.zeros((), x.dtype), [(0, 0, 0), (0, 0, 0), *ends])
    parts = []
    for offset in np.ndindex(*window):
        starts = [k * d for k, d in zip(offset, rhs, strict=True)]
        stops = [
            start + (n - 1) * s + 1
            for start, n, s in zip(starts, after, strides, strict=True)
        ]
        box = lax.slice(
            x, (0, 0, *starts), (*x.shape[:2], *stops), (1, 1, *strides)
        )
        parts.append(box)
    x = jnp.stack(parts, 2)  # [batch, features, window, *after]
    batch, features, many = x.shape[:3]
    x = x.reshape(batch, groups, features // groups * many, -1)
    x = jnp.transpose(x, (1, 0, 3, 2))
    return x.reshape(groups, -1, x.shape[-1])


def gram(x: jax.Array, y: jax.Array) -> jax.Array:
    """``[G, K, K]``: the sum over rows of ``x y^T``."""
    return jnp.einsum("gmk,gml->gkl", x, y, precision=lax.Precision.HIGHEST)
