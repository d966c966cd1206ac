"""Which of equals stay: the first, leaf after leaf and then by flat index."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jprune._core import counts as _counts
from jprune._core.counts import Count
from jprune.selection.search import Bracket


class Division(NamedTuple):
    """What is known of each entry when its last scores are, ``[1, entries]``."""

    low: jax.Array  # unsigned: keys of scores, see ``count_divided``
    high: jax.Array
    divided: jax.Array  # bool: where the index matters
    none: jax.Array  # bool: where of equals none stays

    def last(self, keys: jax.Array, sizes: Any) -> jax.Array:
        """How many of the last places go, ``[points, entries]``."""
        zero = np.zeros((), keys.dtype)
        others = jnp.where(self.none, sizes.astype(keys.dtype), zero)
        return jnp.where(self.divided, keys, others)


def divide(
    now: Bracket,
    pooled: Callable[[jax.Array], Count],
    lost: Count,
    sizes: Any,
) -> tuple[Bracket, Division]:
    """Where to search among places in pools of which one score is left.

    Of equals the first stay. So entry after entry keeps all it has until there
    are enough; one in each pool is divided.

    Args:
      now: The bracket of scores.
      pooled: Counts of entries to counts of pools.
      lost: How many go, ``[1, pools]``.
      sizes: Units of each entry, ``[1, entries]``.
    """
    low, high, under_low, under_high = now
    begin = ~_counts.equal(pooled(under_low), lost) & (high - low <= 1)
    equals = under_high - under_low
    stay = _counts.subtract(pooled(under_high), lost)
    if stay.low.shape == equals.shape:  # an entry is a pool
        shares = _counts.to_int32(stay)
    else:
        dealt = _counts.share(stay, _counts.count_of(equals.T))
        shares = _counts.to_int32(dealt).T
    divided = begin & (shares > 0) & (shares < equals)
    none = begin & (shares <= 0)
    start = under_low + jnp.where(none, equals, 0)
    most = sizes.max().astype(low.dtype)
    ties = Bracket(
        low=jnp.zeros_like(low),
        high=jnp.where(begin, most, np.ones((), low.dtype)),
        under_low=start,
        under_high=start + jnp.where(divided, equals, 0),
    )
    return ties, Division(low, high, divided, none)
