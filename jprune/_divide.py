"""Which of equals stay: the first, leaf after leaf and then by flat index."""

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jprune import _counts
from jprune._counts import Count
from jprune._kernels import EVERY, rows_of
from jprune._keys import bits_of
from jprune._search import Bracket


class Division(NamedTuple):
    """What is known of each pool when its last scores are."""

    low: jax.Array  # [pools] unsigned: bits of scores, see ``count_divided``
    high: jax.Array
    divided: jax.Array  # [entries] bool: where the index matters
    bound: jax.Array  # [entries] unsigned: elsewhere; all stay, or none
    size: int  # the largest number of units in an entry

    def rows(self, keys: jax.Array, grow: jax.Array) -> jax.Array:
        """What is asked of leaves about flat indices, counted from the end."""
        index = np.array(self.size, keys.dtype) - keys
        bounds = jnp.where(self.divided[None], index, self.bound[None])
        return rows_of(bounds, self.low, self.high, grow)


def divide(
    now: Bracket,
    pooled: Callable[[jax.Array], Count],
    lost: Count,
    size: int,
) -> tuple[Division, Bracket]:
    """Where to search among flat indices in pools of which one score is left.

    Of equals the first stay. So entry after entry keeps all it has until there
    are enough; one in each pool is divided.
    """
    (low, high, under_low, under_high), dtype = now, now.low.dtype
    begin = ~_counts.equal(pooled(under_low), lost) & (high - low <= 1)
    equals = under_high - under_low
    stay = _counts.subtract(pooled(under_high), lost)
    if stay.low.shape == equals.shape:  # an entry is a pool
        shares = _counts.to_int32(stay)
    else:
        dealt = _counts.share(stay, _counts.count_of(equals))
        shares = _counts.to_int32(dealt)
    divided = begin & (shares > 0) & (shares < equals)
    none = begin & (shares <= 0)
    start = under_low + jnp.where(none, equals, 0)
    return Division(
        low=bits_of(low),
        high=bits_of(high),
        divided=divided,
        bound=jnp.where(none, np.array(0, dtype), np.array(EVERY, dtype)),
        size=size,
    ), Bracket(
        low=jnp.zeros_like(low),
        high=jnp.where(begin, np.array(size, dtype), np.array(1, dtype)),
        under_low=start,
        under_high=start + jnp.where(divided, equals, 0),
    )
