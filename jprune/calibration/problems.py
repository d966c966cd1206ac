"""What a product is solved for, and how far its outputs are off."""

from functools import partial

import jax
import jax.numpy as jnp
from jax import lax

from jprune.calibration.pruner import Sums
from jprune.calibration.solvers.base import Problem, diagonal, dot


@partial(jax.jit, static_argnames="centred")
def problem_of(kernel: jax.Array, sums: Sums, *, centred: bool) -> Problem:
    """Least squares of what the outputs of ``kernel``, [G, K, N], were.

    Where ``centred`` a bias takes up the mean, and only what varies counts.
    """
    own = sums.own
    gram, right, target = own.gram, own.gram, own.sum
    if sums.cross is not None:
        right, target = sums.cross, sums.dense.sum
    if centred:
        count = jnp.maximum(own.count, 1)[:, None, None]
        gram = gram - own.sum[:, :, None] * own.sum[:, None, :] / count
        right = right - own.sum[:, :, None] * target[:, None, :] / count
    # An input that never varied has no row and no column: what the difference leaves
    # of it is rounding, and correlations of that are above 1.
    least = 64 * jnp.finfo(gram.dtype).eps * diagonal(own.gram)
    alive = diagonal(gram) > least
    gram = jnp.where(alive[:, :, None] & alive[:, None, :], gram, 0.0)
    right = jnp.where(alive[:, :, None], right, 0.0)
    kernel = kernel.astype(gram.dtype)
    return Problem(kernel, gram, dot(right, kernel), own.count)


@jax.jit
def shift_of(sums: Sums, old: jax.Array, new: jax.Array) -> jax.Array:
    """How much a bias has to move so that means of outputs stay, [G, N]."""
    own = sums.own
    target = own.sum if sums.dense is None else sums.dense.sum
    mean = partial(jnp.einsum, "gk,gkn->gn", precision=lax.Precision.HIGHEST)
    old = old.astype(own.sum.dtype)
    move = mean(target, old) - mean(own.sum, new)
    return move / jnp.maximum(own.count, 1)[:, None]


@partial(jax.jit, static_argnames="moves")
def judged(
    sums: Sums, old: jax.Array, new: jax.Array, mask: jax.Array, *, moves: bool
) -> tuple[jax.Array, jax.Array]:
    """Sums of squares, [3]: by which outputs differ, masked and repaired; of theirs.

    Where ``moves`` a bias takes up the mean of the repaired: and how it has to.
    """
    own = sums.own
    old = old.astype(own.gram.dtype)
    masked = jnp.where(mask, old, 0.0)
    errors = [_error(sums, old, x) for x in (masked, new)]
    shift = shift_of(sums, old, new)
    if moves:
        errors[1] -= jnp.sum(shift**2 * own.count[:, None])
    aim = own if sums.dense is None else sums.dense
    power = jnp.sum(old * dot(aim.gram, old))
    return jnp.maximum(jnp.stack([*errors, power]), 0), shift


def _error(sums: Sums, old: jax.Array, new: jax.Array) -> jax.Array:
    if sums.cross is None:
        change = new - old
        return jnp.sum(change * dot(sums.own.gram, change))
    total = jnp.sum(new * dot(sums.own.gram, new))
    total -= 2 * jnp.sum(new * dot(sums.cross, old))
    return total + jnp.sum(old * dot(sums.dense.gram, old))
