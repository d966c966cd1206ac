"""Masks and no repair."""

from typing import Any

import jax.numpy as jnp

from jprune._core.calls import recorded
from jprune.calibration.solvers.base import Choose, Problem, Solver


@recorded
def mask_only() -> Solver:
    """Masks weights without repair: kept weights do not change.

    The ``criterion`` of :func:`jprune.one_shot` chooses the weights, ``magnitude()`` by
    default. With ``activation(stats)`` and ``fan_in()`` this is Wanda.

    Returns:
      A :class:`Solver`.

    References:
      Sun et al., `A Simple and Effective Pruning Approach for Large Language Models
      <https://arxiv.org/abs/2306.11695>`_, 2023.

    >>> import jax.numpy as jnp, jprune
    >>> params = jnp.array([[3.], [-2.], [1.], [.5]])
    >>> result = jprune.one_shot(lambda w, x: x @ w, params, [jnp.eye(4)], .5,
    ...                          solver=jprune.solvers.mask_only())
    >>> result.params[:, 0]
    Array([ 3., -2.,  0.,  0.], dtype=float32)
    """

    def solve(problem: Problem, choose: Choose) -> Any:
        mask = choose(jnp.abs(problem.kernel))
        return jnp.where(mask, problem.kernel, 0.0), mask

    return Solver(solve, repairs=False)
