"""Backward OBS: inputs go one after the other, the least missed first."""

from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax

from jprune._core.calls import recorded
from jprune._core.checks import check_not_negative
from jprune.calibration.solvers.base import (
    Problem,
    Solver,
    damped,
    dot,
    inverse,
)
from jprune.calibration.solvers.least_squares import fitted_rows


@recorded
def obs(ridge: float = 0.01) -> Solver:
    r"""Removes whole units one by one, and repairs the others: the default for units.

    Let a unit have the rows :math:`u` of a kernel, and
    :math:`P = (X^T X + r I)^{-1}`. Without the unit, and with all others refitted, the
    error is :math:`\mathrm{tr}(W_u^T P_{uu}^{-1} W_u)`. The unit with the smallest error
    is removed, and

    .. math:: W \leftarrow W - P_{:u} P_{uu}^{-1} W_u, \quad
              P \leftarrow P - P_{:u} P_{uu}^{-1} P_{u:}.

    At the end all kept rows are fitted at once. The rows of a channel are those of all
    its positions after flattening and of its whole window; those of a head are its width.
    Products that share an input are judged together. Units that several inputs share, as
    in a residual stream, are chosen beforehand from the dense model, and the targets are
    then the dense model's outputs. If there are more than 128 units, several are removed
    at a time.

    Args:
      ridge: :math:`r`, as a multiple of the mean diagonal of the Gram matrix, at least 0.
        It is ten times as large if there are fewer than three rows for each input.

    Returns:
      A :class:`Solver`, for ``units(graph)`` and ``channel`` of a contracted axis.

    Raises:
      ValueError: ``ridge`` is below 0.

    Cost: an inverse of [K, K], and at most 128 updates of it.

    References:
      Hassibi and Stork, `Second order derivatives for network pruning: Optimal Brain
      Surgeon
      <https://proceedings.neurips.cc/paper/1992/hash/303ed4c69846ab36c2904d3ba8573050-Abstract.html>`_,
      1992; Kurtic et al., `ZipLM <https://arxiv.org/abs/2302.04089>`_, 2023, section 3.

    >>> import jax, jax.numpy as jnp, jprune
    >>> def fn(params, x):
    ...     return jax.nn.relu(x @ params["w"] + params["b"]) @ params["v"]
    >>> x = jax.random.normal(jax.random.key(0), (64, 2))
    >>> params = {"w": jnp.array([[1., 1., 0.], [0., 0., 1.]]), "b": jnp.zeros(3),
    ...           "v": jnp.array([[1.], [2.], [1.]])}
    >>> graph = jprune.trace_units(fn, params, x)
    >>> result = jprune.one_shot(fn, params, [x], 1/3, structure=jprune.units(graph))
    >>> int(result.masks["b"].sum())  # the first two units are the same
    2
    >>> round(float(result.params["v"][:2].sum()), 1)
    3.0
    """
    ridge = check_not_negative("`obs(ridge=...)`", ridge)

    def choose(problem: Problem, members: Any, count: Any) -> jax.Array:
        result: jax.Array = backward(problem, members, count, held(problem))
        return result

    def solve(problem: Problem, kept: jax.Array) -> jax.Array:
        result: jax.Array = fitted_rows(problem, kept, held(problem))
        return result

    def held(problem: Problem) -> jax.Array:
        few = problem.rows < 3 * problem.gram.shape[-1]
        return jnp.where(few, 10 * ridge, ridge).astype(problem.gram.dtype)

    return Solver(solve, choose_inputs=choose)


@partial(jax.jit, static_argnames="rounds")
def backward(
    problem: Problem,
    members: jax.Array,
    count: jax.Array,
    ridge: jax.Array,
    rounds: int = 128,
) -> jax.Array:
    """Which inputs stay, ``[G, K]``.

    Args:
      problem: See :class:`Problem`.
      members: Int, ``[G, U, B]``: the rows of each unit; others are never removed.
      count: Int, ``[G]``: how many units go.
      ridge: ``[G]``, relative to the mean diagonal.
      rounds: At most so many times units are removed, several at once if need be.
    """
    each = max(1, -(-members.shape[1] // rounds))
    result: jax.Array = jax.vmap(partial(_backward, each))(
        members, problem.gram, problem.kernel, problem.right, count, ridge
    )
    return result


def _backward(each, members, gram, kernel, right, count, ridge):  # type: ignore[no-untyped-def]
    many, size = members.shape
    held = damped(gram[None], ridge)[0]
    p = inverse(held)
    hold = ridge * jnp.mean(jnp.diagonal(gram))
    # What holds an input that never was active is no reason to keep it.
    alive = jnp.diagonal(gram)[:, None] > 0
    w = dot(p, right + hold * jnp.where(alive, kernel, 0.0))
    eye = jnp.eye(size, dtype=p.dtype)

    def score(w: jax.Array, p: jax.Array, gone: jax.Array) -> jax.Array:
        rows = w[members]  # [U, B, N]
        if size == 1:
            own = p[members[:, 0], members[:, 0]]
            found = jnp.sum(rows[:, 0] ** 2, -1) / jnp.where(gone, 1.0, own)
        else:
            own = p[members[:, :, None], members[:, None, :]]
            own = jnp.where(gone[:, None, None], eye, own)
            half = lax.linalg.triangular_solve(
                jnp.linalg.cholesky(own), rows, left_side=True, lower=True
            )
            found = jnp.sum(half**2, (1, 2))
        return jnp.where(gone, jnp.inf, found)

    def step(state):  # type: ignore[no-untyped-def]
        w, p, gone, done = state
        worst, index = lax.top_k(-score(w, p, gone), each)
        del worst
        use = jnp.arange(each) < count - done
        rows = members[index].reshape(-1)
        used = jnp.repeat(use, size)
        both = used[:, None] & used[None, :]
        block = jnp.where(both, p[rows[:, None], rows[None, :]], 0.0)
        block = block + jnp.diag(jnp.where(used, 0.0, 1.0).astype(p.dtype))
        column = jnp.where(used, p[:, rows], 0.0)
        solved = dot(column, inverse(block))
        w = w - dot(solved, jnp.where(used[:, None], w[rows], 0.0))
        p = p - dot(solved, column.T)
        gone = gone.at[index].set(gone[index] | use)
        return w, p, gone, done + jnp.sum(use, dtype=jnp.int32)

    def going(state):  # type: ignore[no-untyped-def]
        return state[3] < count

    start = w, p, jnp.zeros(many, bool), jnp.zeros((), jnp.int32)
    gone = lax.while_loop(going, step, start)[2]
    kept = jnp.ones(gram.shape[0], bool)
    return kept.at[members.reshape(-1)].set(
        jnp.repeat(~gone, size), mode="drop"
    )
