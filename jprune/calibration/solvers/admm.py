"""ADMM between least squares and a mask."""

from typing import Any

import jax
import jax.numpy as jnp
from jax import lax

from jprune._core.calls import recorded
from jprune._core.checks import check_integer, check_positive
from jprune.calibration.solvers.base import (
    Choose,
    Problem,
    Solver,
    diagonal,
    dot,
    inverse,
)
from jprune.calibration.solvers.least_squares import fitted

DAMPING = 0.1
RIDGE = 1e-3


@recorded
def admm(steps: int = 16, polish: int = 8, rho: float = 1.0) -> Solver:
    r"""Prunes and repairs weights in turn, by ADMM: the default for weights.

    Inputs are scaled so that the diagonal of their Gram matrix is 1. With this matrix
    :math:`A` (.1 is added to its diagonal) and the scaled kernel :math:`W_0`, starting
    from :math:`U = 0`, each step computes

    .. math::

      Z &= M \odot (W + U), \quad U \leftarrow U + W - Z, \\
      W &= (A + \rho I)^{-1} (A W_0 + \rho (Z - U)).

    In the first ``steps`` steps :math:`M` keeps the largest :math:`|W + U|`, at a sparsity
    that rises as :math:`s (1 - (1 - t/T)^3)`. Then :math:`M` is fixed. At the end the
    kept weights are fitted by least squares, as in :func:`jprune.refit`.

    Args:
      steps: How often the mask is chosen, at least 1. Static.
      polish: How many steps follow with the last mask. Static.
      rho: How strongly :math:`W` is pulled towards the masked kernel; above 0.

    Returns:
      A :class:`Solver`, for every structure of weights.

    Raises:
      ValueError: A number is out of range.

    Cost: one inverse of [K, K], and a product of [K, K] and [K, N] per step.

    References:
      Boza, `Fast and Effective Weight Update for Pruned Large Language Models
      <https://arxiv.org/abs/2401.02938>`_, 2024, section 3.

    >>> import jax, jax.numpy as jnp, jprune
    >>> x = jax.random.normal(jax.random.key(0), (50, 4))
    >>> params = jax.random.normal(jax.random.key(1), (4, 3))
    >>> result = jprune.one_shot(lambda w, x: x @ w, params, [x], .5,
    ...                          solver=jprune.solvers.admm(steps=8))
    >>> int(result.masks.sum())
    6
    """
    steps = check_integer("`admm(steps=...)`", steps, 1, static=True)
    polish = check_integer("`admm(polish=...)`", polish, 0, static=True)
    rho = check_positive("`admm(rho=...)`", rho)

    def solve(problem: Problem, choose: Choose) -> Any:
        fixed, w, scores = _start(problem, rho)
        u = jnp.zeros_like(w)
        for t in range(steps):
            mask = choose(scores, 1 - (1 - (t + 1) / steps) ** 3)
            many = 1 if t < steps - 1 else 1 + polish
            u, w, scores, near = _steps(fixed, w, u, mask, rho, many)
        return fitted(problem, mask, RIDGE, start=near), mask

    return Solver(solve)


@jax.jit
def _start(problem: Problem, rho: Any) -> tuple[Any, jax.Array, jax.Array]:
    """Inputs of power 1: what serves all steps, the kernel, the first scores."""
    on = diagonal(problem.gram)
    scale = jnp.sqrt(jnp.where(on > 0, on, 1.0))[..., None]
    gram = problem.gram / (scale * jnp.swapaxes(scale, -1, -2))
    eye = jnp.eye(on.shape[-1], dtype=on.dtype)
    right = problem.right / scale + DAMPING * problem.kernel * scale
    # An input that never varied counts for nothing: it goes first.
    alive = on[..., None] > 0
    w, right = (
        jnp.where(alive, x, 0.0) for x in (problem.kernel * scale, right)
    )
    fixed = scale, inverse(gram + (DAMPING + rho) * eye), right
    return fixed, w, jnp.abs(w)


@jax.jit
def _steps(
    fixed: Any,
    w: jax.Array,
    u: jax.Array,
    mask: jax.Array,
    rho: Any,
    times: Any,
) -> tuple[jax.Array, ...]:
    """So many steps with one mask; scores for the next, and the kernel so far."""
    scale, inv, right = fixed

    def step(_: Any, state: Any) -> Any:
        u, w = state
        z = jnp.where(mask, w + u, 0.0)
        u = u + w - z
        return u, dot(inv, right + rho * (z - u))

    u, w = lax.fori_loop(0, times, step, (u, w))
    return u, w, jnp.abs(w + u), (w + u) / scale
