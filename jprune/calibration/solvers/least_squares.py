"""The kept weights that come closest, for a mask."""

from typing import Any

import jax
import jax.numpy as jnp
from jax import lax

from jprune._core.layout import everywhere
from jprune.calibration.solvers.base import Problem, diagonal, dot


@jax.jit
def fitted(
    problem: Problem,
    mask: jax.Array,
    ridge: Any,
    steps: Any = 60,
    start: Any = None,
) -> jax.Array:
    """Least squares of what is kept, by conjugate gradients, column by column.

    Args:
      problem: See :class:`Problem`.
      mask: Bool, like the kernel: True stays.
      ridge: How strongly the kernel is held, in mean diagonals of the Gram.
      steps: At most so many; a column stops once its residual is small.
      start: Where to begin; None: with the kernel.

    Returns:
      The kernel, 0 where ``mask`` is False.
    """
    on = diagonal(problem.gram)
    more = ridge * jnp.mean(on, -1)[:, None]
    # In units in which every input has the same power, CG needs few steps.
    scale = jnp.sqrt(jnp.where(on + more > 0, on + more, 1.0))
    gram = problem.gram / (scale[:, :, None] * scale[:, None, :])
    hold = more / scale**2
    least = 1e-14 if gram.dtype == jnp.float32 else 1e-28
    start = problem.kernel if start is None else start
    start = jnp.where(mask, start * scale[..., None], 0.0)
    wanted = problem.right / scale[..., None]
    wanted += hold[..., None] * problem.kernel * scale[..., None]

    def power(x: jax.Array) -> jax.Array:
        return jnp.sum(x * x, 1, keepdims=True)  # of each column

    def apply(x: jax.Array) -> jax.Array:
        return jnp.where(mask, dot(gram, x) + hold[..., None] * x, 0.0)

    rest = jnp.where(mask, wanted, 0.0) - apply(start)
    limit = least * power(jnp.where(mask, wanted, 0.0))

    def going(state: Any) -> jax.Array:
        _, _, _, left, step = state
        result: jax.Array = (step < steps) & jnp.any(left > limit)
        return result

    def turn(state: Any) -> Any:
        x, rest, way, left, step = state
        image = apply(way)
        across = jnp.sum(way * image, 1, keepdims=True)
        # A column that has arrived stays: its numbers are rounding by now.
        goes = (left > limit) & (across > 0)
        far = jnp.where(goes, left / jnp.where(goes, across, 1.0), 0.0)
        x, rest = x + far * way, rest - far * image
        now = jnp.where(goes, power(rest), 0.0)
        way = (
            rest + jnp.where(goes, now / jnp.where(goes, left, 1.0), 0.0) * way
        )
        return x, rest, way, now, step + 1

    begin = start, rest, rest, power(rest), 0
    found = lax.while_loop(going, turn, begin)[0]
    return jnp.where(mask, found / scale[..., None], 0.0)


@jax.jit
def fitted_rows(problem: Problem, kept: jax.Array, ridge: Any) -> jax.Array:
    """The same where whole inputs go, solved at once: ``kept`` is [G, K]."""
    on = diagonal(problem.gram)
    more = (ridge * jnp.mean(on, -1))[:, None]
    both = kept[:, :, None] & kept[:, None, :]
    gram = jnp.where(both, problem.gram, 0.0)
    alone = jnp.where(kept, more + jnp.where(on + more == 0, 1.0, 0.0), 1.0)
    gram = gram + alone[..., None] * jnp.eye(on.shape[-1], dtype=gram.dtype)
    right = problem.right + more[..., None] * problem.kernel
    # On an Explicit mesh JAX solves only what is whole.
    right = everywhere(jnp.where(kept[..., None], right, 0.0))
    factor = jax.scipy.linalg.cho_factor(everywhere(gram))
    found = jax.scipy.linalg.cho_solve(factor, right)
    return jnp.where(kept[..., None], found, 0.0)
