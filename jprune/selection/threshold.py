"""The threshold of each pool: its last score that goes, and of equals the place.

One loop searches among scores, and then among the places of equals.
"""

from collections.abc import Callable
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from jprune._core import counts as _counts
from jprune._core.counts import Count
from jprune._core.varying import vary_like
from jprune.selection.divide import Division, divide
from jprune.selection.guess import guess
from jprune.selection.kernels import count_at_most, count_divided
from jprune.selection.keys import bits_of, float_of, full_range
from jprune.selection.plan import ReadPlan, at_once
from jprune.selection.search import Bracket, aim, narrowed, unfinished


def find_last(
    plan: ReadPlan,
    leaves: list[jax.Array],
    lost: Count,
    available: jax.Array,
    grow: jax.Array,
) -> jax.Array:
    """Of the last units that go, what :func:`jprune.selection.kernels.mark` must know.

    Args:
      plan: The plan of the leaves.
      leaves: Their scores.
      lost: How many candidates go, ``[1, pools]``.
      available: Of how many, ``[1, entries]``.
      grow: Whether what was kept is no candidate and stays, ``[1, pools]``.

    Returns:
      ``[rows, entries]``, unsigned.
    """
    wide = any(x.dtype.itemsize == 8 for x in leaves)
    dtype = np.uint64 if wide else np.uint32
    find = partial(_find, joint=plan.joint, dtype=dtype)
    if plan.whole:

        def count(
            function: Callable[..., jax.Array], asked: jax.Array
        ) -> jax.Array:
            return plan.read(partial(at_once, function), leaves, asked)

        return find(
            count, plan.pooled, plan.sizes, lost, available, grow, leaves
        )

    # Pools apart: each block is searched to the end while it is at hand.
    def block(blocks: list[jax.Array], values: jax.Array) -> jax.Array:
        def count(
            function: Callable[..., jax.Array], asked: jax.Array
        ) -> jax.Array:
            return at_once(function, blocks, asked)

        sizes, available, number, grow = jnp.split(values, 4)
        lost = _counts.count_of(number)
        return find(
            count, _counts.count_of, sizes, lost, available, grow, blocks
        )

    number = _counts.to_int32(lost)
    rows = [jnp.asarray(plan.sizes), available, number, grow.astype(np.int32)]
    rows = [jnp.broadcast_to(row, available.shape) for row in rows]
    return plan.read(block, leaves, jnp.concatenate(rows))


def _find(
    count: Callable[[Callable[..., jax.Array], jax.Array], jax.Array],
    pooled: Callable[[jax.Array], Count],
    sizes: Any,
    lost: Count,
    available: jax.Array,
    grow: jax.Array,
    leaves: list[jax.Array],
    *,
    joint: bool,
    dtype: Any,
) -> jax.Array:
    """The same, of what ``count`` reads."""
    first = guess(leaves, lost, pooled(available), joint=joint).astype(dtype)

    # One array of all is made by one program, and eight are by eight.
    def packed(*parts: Any) -> jax.Array:
        rows = jax.tree.leaves(parts)
        return jnp.concatenate([row.astype(dtype) for row in rows])

    def unpacked(state: jax.Array) -> tuple[Bracket, Division, jax.Array]:
        low, high, *counts = jnp.split(state[:4], 4)
        now = Bracket(low, high, *(x.astype(np.int32) for x in counts))
        low, high, divided, none = jnp.split(state[4:8], 4)
        division = Division(low, high, divided.astype(bool), none.astype(bool))
        return now, division, state[8:]

    def ask(
        second: jax.Array, division: Division, keys: jax.Array
    ) -> jax.Array:
        rows = jnp.where(second, division.last(keys, sizes), bits_of(keys))
        ends = map(bits_of, (division.low, division.high))
        return packed(rows, *ends, jnp.broadcast_to(grow, available.shape))

    def look(state: Any) -> Any:
        second, (before, division, keys) = state[0], unpacked(state[1])
        each = lax.cond(
            second,
            partial(count, count_divided),
            partial(count, count_at_most),
            ask(second, division, keys),
        )
        few = ~_counts.less(lost, pooled(each))
        now = narrowed(before, keys, each, few)
        turns = ~second & ~unfinished(now, pooled, lost)
        now, division = jax.tree.map(
            partial(jnp.where, turns),
            divide(now, pooled, lost, sizes),
            (now, division),
        )
        keys = aim(now, pooled, lost, before, turns)
        return second | turns, packed(now, division, keys)

    def goes_on(state: tuple[jax.Array, jax.Array]) -> jax.Array:
        now, *_ = unpacked(state[1])
        return ~state[0] | unfinished(now, pooled, lost)

    none = (0 * available).astype(dtype)  # of the scores' mesh and batch
    low, high = (none + x for x in full_range(dtype))
    rest = none, none, none, none, none + first
    begin = packed(low, high, none, available, *rest)
    start = vary_like((jnp.any(none > 0), begin), (lost, leaves))
    _, end = lax.while_loop(goes_on, look, start)
    now, division, _ = unpacked(end)
    last, high = division.last(now.low, sizes), bits_of(division.high)
    nan = jnp.where(jnp.isnan(float_of(high)), last, np.zeros((), dtype))
    others = jnp.broadcast_to(grow, available.shape)
    return packed(last, nan, bits_of(division.low), high, others)
