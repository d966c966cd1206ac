"""SparseGPT: weight by weight, what a weight did is taken over by those after it."""

from typing import Any

import jax
import jax.numpy as jnp
from jax import lax

from jprune._core.calls import recorded
from jprune._core.checks import check_integer, check_not_negative
from jprune.calibration.solvers.base import (
    Choose,
    Problem,
    Solver,
    damped,
    diagonal,
    dot,
)


@recorded
def sparsegpt(block: int = 128, damping: float = 0.01) -> Solver:
    r"""Goes through inputs once; those that follow take over what each one did.

    With :math:`U^T U = (X^T X + d I)^{-1}`, :math:`U` upper triangular, input after
    input: what goes is what has the least :math:`w^2 / U_{jj}^2`, and

    .. math:: e = (w_j - q_j) / U_{jj}, \quad
              W_{k} \leftarrow W_{k} - U_{jk}\, e \quad (k > j),

    where :math:`q_j` is the masked (and, with a grid, rounded) row :math:`w_j`. Weights
    are chosen in blocks of inputs, each at its share, for ``unstructured()`` and
    ``fan_in()``; for other structures all at once, before.

    Args:
      block: How many inputs a block has. Static.
      damping: :math:`d`, in mean diagonals of the Gram; at least 0.

    Returns:
      A :class:`Solver`, for every structure of weights.

    Raises:
      ValueError: A number out of its range.

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
    w = problem.kernel
    many = w.shape[1]
    upper = _factor(problem.gram, damping)
    on = diagonal(upper)[..., None]
    # Damping alone would give a score to inputs that never were active.
    on = jnp.where(diagonal(problem.gram)[..., None] > 0, on, jnp.inf)
    masks = []
    if mask is None and not choose.by_rows:  # type: ignore[union-attr]
        mask = choose(jnp.square(w / on))  # type: ignore[misc]
    for start in range(0, many, block):
        rows = start, min(start + block, many)
        if mask is None:
            one = choose(jnp.square(w / on), rows=rows)[:, slice(*rows)]  # type: ignore[misc]
        else:
            one = mask[:, slice(*rows)]
        masks.append(one)
        scales = None if grid is None else grid[:, slice(*rows)]
        w = _block(w, upper, one, scales, start)
    return w, jnp.concatenate(masks, 1)


@jax.jit
def _factor(gram: jax.Array, damping: Any) -> jax.Array:
    """``U`` upper with ``U^T U`` the inverse of the damped Gram."""
    gram = damped(gram, damping)
    lower = jnp.linalg.cholesky(gram[:, ::-1, ::-1])
    upper = lower[:, ::-1, ::-1]
    eye = jnp.broadcast_to(
        jnp.eye(gram.shape[-1], dtype=gram.dtype), gram.shape
    )
    return lax.linalg.triangular_solve(upper, eye, left_side=True, lower=False)


@jax.jit
def _block(
    w: jax.Array, upper: jax.Array, mask: jax.Array, scales: Any, start: Any
) -> jax.Array:
    """The rows of a block in turn, then all that follow at once."""
    size = mask.shape[1]
    own = lax.dynamic_slice_in_dim(w, start, size, 1)
    lines = lax.dynamic_slice_in_dim(upper, start, size, 1)  # [G, B, K]
    square = lax.dynamic_slice_in_dim(lines, start, size, 2)

    def row(own: jax.Array, i: Any) -> tuple[jax.Array, jax.Array]:
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
        return lax.dynamic_update_index_in_dim(own, new, i, 1), error

    own, errors = lax.scan(row, own, jnp.arange(size))
    errors = jnp.swapaxes(errors, 0, 1)  # [G, B, N]
    later = jnp.arange(w.shape[1])[None, None, :] >= start + size
    lines = jnp.where(later, lines, 0.0)
    w = w - dot(jnp.swapaxes(lines, 1, 2), errors)
    return lax.dynamic_update_slice_in_dim(w, own, start, 1)


def rounded(x: jax.Array, grid: Any) -> jax.Array:
    """The nearest point of a grid ``(step, most)``."""
    step, most = grid[..., 0], grid[..., 1]
    result: jax.Array = jnp.clip(jnp.round(x / step), -most, most) * step
    return result
