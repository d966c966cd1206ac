"""SparseGPT: weight by weight, what a weight did is taken over by those after it."""

from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from jprune._core.calls import recorded
from jprune._core.checks import check_integer, check_not_negative
from jprune.calibration.solvers.base import (
    Choose,
    Problem,
    Solver,
    Together,
    damped,
    diagonal,
    dot,
)
from jprune.selection.ranking import select_few


@recorded
def sparsegpt(block: int = 128, damping: float = 0.01) -> Solver:
    r"""Prunes inputs in one sweep; the inputs that follow make up for each one.

    With :math:`U^T U = (X^T X + d I)^{-1}` and :math:`U` upper triangular, it goes from
    input to input. Weights with the smallest :math:`w^2 / U_{jj}^2` are removed, and

    .. math:: e = (w_j - q_j) / U_{jj}, \quad
              W_{k} \leftarrow W_{k} - U_{jk}\, e \quad (k > j),

    where :math:`q_j` is the masked (and, with a grid, rounded) row :math:`w_j`. For
    ``unstructured()`` and ``fan_in()`` weights are chosen block by block, the same share
    in each; for ``n_m`` they are chosen when the sweep reaches the first of each ``m``.
    For other structures all are chosen beforehand.

    Args:
      block: Number of inputs in a block. Static.
      damping: :math:`d`, as a multiple of the mean diagonal of the Gram matrix; at least 0.

    Returns:
      A :class:`Solver`, for every structure of weights.

    Raises:
      ValueError: A number is out of range.

    Cost: a factorisation of [K, K] and K^2 N multiply-adds.

    References:
      Frantar and Alistarh, `SparseGPT <https://arxiv.org/abs/2301.00774>`_, 2023,
      algorithm 1.

    >>> import jax.numpy as jnp, jprune
    >>> x = jnp.linalg.cholesky(jnp.array([[2., 1.], [1., 2.]])).T
    >>> result = jprune.one_shot(lambda w, x: x @ w, jnp.array([[1.], [1.2]]), [x],
    ...     .5, solver=jprune.solvers.sparsegpt(damping=0.))
    >>> [round(float(w), 2) for w in result.params[:, 0]]  # half of the first
    [0.0, 1.7]
    """
    block = check_integer("`sparsegpt(block=...)`", block, 1, static=True)
    damping = check_not_negative("`sparsegpt(damping=...)`", damping)

    def solve(problem: Problem, choose: Choose) -> Any:
        return swept(problem, choose, None, block, damping)

    return Solver(solve)


def swept(
    problem: Problem,
    choose: Choose | None,
    grid: Any,
    block: int = 128,
    damping: float = 0.01,
    mask: Any = None,
) -> tuple[jax.Array, jax.Array]:
    """One sweep over the rows of a kernel; a mask that is given is taken."""
    if mask is None and choose.together is not None:  # type: ignore[union-attr]
        return _by_pools(problem, choose.together, grid, block, damping)  # type: ignore[union-attr]
    w = problem.kernel
    many = w.shape[1]
    upper, on = _factor(problem.gram, damping)
    masks = []
    if mask is None and not choose.by_rows:  # type: ignore[union-attr]
        mask = choose(jnp.square(w / on))  # type: ignore[misc]
    for start in range(0, many, block):
        rows = start, min(start + block, many)
        if mask is None:
            scores = _scores(w, on, start, size=rows[1] - start)
            one = choose(scores, rows=rows)  # type: ignore[misc]
        else:
            one = mask[:, slice(*rows)]
        masks.append(one)
        scales = None if grid is None else grid[:, slice(*rows)]
        w, _ = _block(w, upper, one, scales, start)
    return w, jnp.concatenate(masks, 1)


@partial(jax.jit, static_argnames="size")
def _scores(w: jax.Array, on: jax.Array, start: Any, *, size: int) -> jax.Array:
    """Of the rows of a block."""
    w, on = (lax.dynamic_slice_in_dim(x, start, size, 1) for x in (w, on))
    return jnp.square(w / on)


def _by_pools(
    problem: Problem, pools: Together, grid: Any, block: int, damping: float
) -> tuple[jax.Array, jax.Array]:
    """The sweep where pools of a few rows are chosen from as they are come to."""
    order, size, stay = pools
    w, many = problem.kernel[:, order], len(order)
    upper, on = _factor(problem.gram[:, order][:, :, order], damping)
    block = -(-block // size) * size
    masks = []
    for start in range(0, many, block):
        rows = slice(start, min(start + block, many))
        scales = None if grid is None else grid[:, order[rows]]
        ones = jnp.ones(w[:, rows].shape, bool)
        pick = on[:, rows], stay
        w, mask = _block(w, upper, ones, scales, start, pick, size=size)
        masks.append(mask)
    back = np.argsort(order)
    return w[:, back], jnp.concatenate(masks, 1)[:, back]


@jax.jit
def _factor(gram: jax.Array, damping: Any) -> tuple[jax.Array, jax.Array]:
    """``U`` upper with ``U^T U`` the inverse of the damped Gram; what scores are by."""
    on = diagonal(gram)
    gram = damped(gram, damping)
    lower = jnp.linalg.cholesky(gram[:, ::-1, ::-1])
    upper = lower[:, ::-1, ::-1]
    eye = jnp.broadcast_to(
        jnp.eye(gram.shape[-1], dtype=gram.dtype), gram.shape
    )
    upper = lax.linalg.triangular_solve(upper, eye, left_side=True, lower=False)
    # Damping alone would give a score to inputs that never were active.
    on = jnp.where(on > 0, diagonal(upper), jnp.inf)
    return upper, on[..., None]


@partial(jax.jit, static_argnames="size")
def _block(
    w: jax.Array,
    upper: jax.Array,
    mask: jax.Array,
    scales: Any,
    start: Any,
    pick: Any = None,
    size: int = 1,
) -> tuple[jax.Array, jax.Array]:
    """The rows of a block in turn, then all that follow at once; and the mask.

    With ``pick``, what scores are by and how many stay, of ``size`` rows each, the
    mask is chosen when the first of them is come to.
    """
    many = mask.shape[1]
    own = lax.dynamic_slice_in_dim(w, start, many, 1)
    lines = lax.dynamic_slice_in_dim(upper, start, many, 1)  # [G, B, K]
    square = lax.dynamic_slice_in_dim(lines, start, many, 2)

    def chosen(own: jax.Array, mask: jax.Array, i: Any) -> jax.Array:
        def some(x: jax.Array) -> jax.Array:
            return lax.dynamic_slice_in_dim(x, i, size, 1)

        scores = jnp.square(some(own) / some(pick[0]))
        units = jnp.swapaxes(scores, 1, 2)  # [G, N, size]
        (stay,) = select_few([units], jnp.reshape(pick[1], 1))
        return lax.dynamic_update_slice_in_dim(
            mask, jnp.swapaxes(stay, 1, 2), i, 1
        )

    def row(state: Any, i: Any) -> tuple[Any, jax.Array]:
        own, mask = state
        if pick is not None:
            mask = lax.cond(
                i % size == 0, chosen, lambda own, mask, i: mask, own, mask, i
            )
        here = lax.dynamic_index_in_dim(own, i, 1, keepdims=False)
        kept = lax.dynamic_index_in_dim(mask, i, 1, keepdims=False)
        line = lax.dynamic_index_in_dim(square, i, 1, keepdims=False)
        new = jnp.where(kept, here, 0.0)
        if scales is not None:
            scale = lax.dynamic_index_in_dim(scales, i, 1, keepdims=False)
            new = rounded(new, scale)
        on = lax.dynamic_index_in_dim(line, i, 1, keepdims=True)
        error = (here - new) / on  # [G, N]
        # What lies before is done: the factor is upper.
        own = own - line[:, :, None] * error[:, None, :]
        own = lax.dynamic_update_index_in_dim(own, new, i, 1)
        return (own, mask), error

    (own, mask), errors = lax.scan(row, (own, mask), jnp.arange(many))
    errors = jnp.swapaxes(errors, 0, 1)  # [G, B, N]
    later = jnp.arange(w.shape[1])[None, None, :] >= start + many
    lines = jnp.where(later, lines, 0.0)
    w = w - dot(jnp.swapaxes(lines, 1, 2), errors)
    return lax.dynamic_update_slice_in_dim(w, own, start, 1), mask


def rounded(x: jax.Array, grid: Any) -> jax.Array:
    """The nearest point of a grid ``(step, most)``."""
    step, most = grid[..., 0], grid[..., 1]
    result: jax.Array = jnp.clip(jnp.round(x / step), -most, most) * step
    return result
