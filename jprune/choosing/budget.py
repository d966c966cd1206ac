"""Sparsity of what units cost, in place of their number.

Units are removed in the usual order until at most the wanted fraction of the
cost is left. What a unit costs depends on the others that are left, so that the
fraction of units is searched for by bisection.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from jprune._core import counts as _counts
from jprune._core.checks import is_traced

BITS = 24  # of the fraction of units; pools have fewer units than 2**23
ROUNDING = 1e-6  # costs are floats: a fraction is reached up to this


class Budget(NamedTuple):
    """A fraction of the cost, in one ranking: how many units depends on which."""

    sparsity: Any


def target_of(sparsity: Any) -> jax.Array:
    """The fraction of the cost that may be left."""
    target: jax.Array = _counts.density_of(jnp.asarray(sparsity, float))
    return target


def units_lost(
    left: Callable[[Any], jax.Array], sparsity: Any, *, traced: bool
) -> Any:
    """The least fraction of units without which little enough is left.

    Args:
      left: From the fraction of units that go to that of the cost that is left;
        it never rises.
      sparsity: The fraction of the cost that goes.
      traced: Whether ``left`` returns what is traced.

    Returns:
      A fraction: a Python float if nothing is traced, else a float32.
    """
    goal = target_of(sparsity) + ROUNDING
    if not traced and not is_traced(sparsity):
        low, high = 0, 2**BITS
        while low < high:
            middle = (low + high) // 2
            fits = bool(left(middle / 2**BITS) <= goal)
            low, high = (low, middle) if fits else (middle + 1, high)
        return low / 2**BITS

    def fraction(steps: jax.Array) -> jax.Array:
        return steps.astype(jnp.float32) / 2.0**BITS

    def halve(_: Any, bracket: Any) -> Any:
        low, high = bracket
        middle = (low + high) // 2
        fits = left(fraction(middle)) <= goal
        open_ = low < high
        return (
            jnp.where(open_ & ~fits, middle + 1, low),
            jnp.where(open_ & fits, middle, high),
        )

    ends = jnp.int32(0), jnp.int32(2**BITS)
    return fraction(lax.fori_loop(0, BITS + 1, halve, ends)[0])


def is_off(
    cost: Callable[[jax.Array], jax.Array],
    counts: jax.Array,
    sizes: np.ndarray,
    least: Any,
    rounded: Callable[[jax.Array], jax.Array],
    sparsity: Any,
) -> jax.Array:
    """Whether units must go, or whichever came back would be within the budget.

    The next in the order needn't be the cheapest, so that more are chosen only
    if any would do: what is pruned stays while the target does not fall.

    Args:
      cost: Counts of pools to the fraction of the cost that is left.
      counts: Kept units of each pool.
      sizes: All of them.
      least: What stays in any case.
      rounded: Counts to those that are allowed.
      sparsity: The fraction of the cost that goes.
    """
    goal = target_of(sparsity)
    over = (cost(counts) > goal + 2 * ROUNDING) & jnp.any(counts > least)
    one = np.eye(len(sizes), dtype=np.int32)
    more = jax.vmap(lambda extra: cost(rounded(counts + extra)))(one)
    full = counts == sizes
    fits = jnp.all(full | (more <= goal - ROUNDING)) & ~jnp.all(full)
    return over | fits
