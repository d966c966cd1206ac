"""What a solver is: from a problem of least squares to a kernel with zeros."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from jprune._core.calls import show


class Problem(NamedTuple):
    """The kernels to prune and the statistics of their inputs, for a solver.

    Arrays are float32 or wider. The solution :math:`V` minimises
    ``tr(V^T gram V) - 2 tr(V^T right)``. If outputs have a bias, which can correct the
    mean, ``gram`` and ``right`` are those of centred inputs.
    """

    kernel: jax.Array  # [G, K, N]
    gram: jax.Array  # [G, K, K]
    right: jax.Array  # [G, K, N], `gram @ kernel` unless targets are others'
    rows: jax.Array  # [G], how many there were


Choose = Callable[..., jax.Array]
"""``choose(scores, share=1., rows=None)``: scores [G, K, N] -> bool mask of what stays.

``share`` is the part of what is to be removed that goes already; ``rows=(a, b)`` says
that the scores, and the mask, are of those rows alone, which lose their share.
``choose.together`` says which rows are pools of their own, see :class:`Together`."""


class Together(NamedTuple):
    """Pools of a few rows of one column, which are chosen from as they are come to."""

    order: np.ndarray  # int [K], rows so that those of a pool follow each other
    size: int  # how many these are
    stay: np.int32  # and how many of them stay


class Solver(NamedTuple):
    """Prunes and repairs a kernel.

    For weights it has ``solve(problem, choose) -> (kernel, mask)``. For whole inputs it
    has ``choose_inputs(problem, members, count) -> kept``: ``members``, int [G, U, B],
    are the rows of each unit, ``count``, int [G], is the number of units to remove, and
    ``kept`` is bool [G, K]. Its ``solve(problem, kept) -> kernel`` then repairs.
    """

    solve: Callable[..., Any]
    choose_inputs: Callable[..., jax.Array] | None = None
    repairs: bool = True  # whether it changes what stays

    def __repr__(self) -> str:
        return show(self)


Solver.__module__ = "jprune.solvers"  # where users find it


def dot(a: jax.Array, b: jax.Array) -> jax.Array:
    """``a @ b`` at the highest precision."""
    return jnp.matmul(a, b, precision=lax.Precision.HIGHEST)


def diagonal(gram: jax.Array) -> jax.Array:
    """``[..., K]``."""
    result: jax.Array = jnp.diagonal(gram, axis1=-2, axis2=-1)
    return result


def damped(gram: jax.Array, damping: Any) -> jax.Array:
    """With a multiple of the mean diagonal added; inputs that never were: 1."""
    on = diagonal(gram)
    more = damping * jnp.mean(on, -1, keepdims=True)
    more = more + jnp.where(on == 0, jnp.where(more == 0, 1.0, 0.0), 0.0)
    result: jax.Array = gram + more[..., None] * jnp.eye(
        gram.shape[-1], dtype=gram.dtype
    )
    return result


def inverse(matrix: jax.Array) -> jax.Array:
    """Of a symmetric positive matrix; NaN where it is not."""
    lower = jnp.linalg.cholesky(matrix)
    eye = jnp.broadcast_to(
        jnp.eye(matrix.shape[-1], dtype=matrix.dtype), matrix.shape
    )
    half = lax.linalg.triangular_solve(lower, eye, left_side=True, lower=True)
    return dot(jnp.swapaxes(half, -1, -2), half)
