"""Whole units by weights: a divisor method, which has no paradoxes."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from jprune._core import counts as _counts
from jprune._core.counts import Count
from jprune._core.varying import vary_like

_WHOLE, _PART = 46, 32  # bits of quotas before the point and behind it


class _Quota(NamedTuple):
    """Numbers in fixed point, so that all of arithmetic is exact."""

    whole: Count
    part: jax.Array  # uint32, of 2**32


def divide(logs: np.ndarray, sizes: np.ndarray, total: Any) -> Any:
    """Divides ``total`` units among pools, in proportion to weights.

    With a common factor the quota of each pool is its weight times that factor; the
    k-th unit of a pool goes to it as its quota crosses k - 1/2, as long as it has
    so many. So no count falls while the total rises. Of units that the factor, of
    so many bits, can't tell apart the first pool's are first.

    Args:
      logs: Logarithms to base 2 of positive weights, float64.
      sizes: Units of each pool, int64, each below 2**31.
      total: How many units, an integer or, if it is a number of JAX, a
        :class:`Count`; at most the sum of sizes.

    Returns:
      int32, of which the sum is ``total``: an array of NumPy for an integer.
    """
    quotas = _quotas(logs, sizes)
    if isinstance(total, Count):
        return _in_program(_fixed(quotas / 2), _counts.count_of(sizes), total)
    return _on_host(quotas, sizes, int(total))


def divide_along(path: np.ndarray, total: Any) -> Any:
    """Counts on a way from many units to few, for a total between the two.

    Between two rows of the way, what differs is divided in proportion. So no count
    rises while the total falls.

    Args:
      path: int64 ``[steps + 1, pools]``: counts that never rise from row to row.
      total: How many units, as in :func:`divide`. Fewer than the last row has are
        taken for those, more than the first has for all.

    Returns:
      int32 ``[pools]``.
    """
    rest, totals = path[:-1] - path[1:], path.sum(1)
    logs = np.log2(np.maximum(rest, 1))
    if not isinstance(total, Count):
        total = int(np.clip(total, totals[-1], totals[0]))
        at = min(int((totals[1:] > total).sum()), len(rest) - 1)
        more = divide(logs[at], rest[at], total - int(totals[at + 1]))
        result: np.ndarray = (path[at + 1] + more).astype(np.int32)
        return result
    ends = _counts.count_of(totals)
    first, last = (jax.tree.map(lambda x, i=i: x[i], ends) for i in (0, -1))
    total = _counts.where(_counts.less(total, last), last, total)
    total = _counts.where(_counts.less(first, total), first, total)
    after = jax.tree.map(lambda x: x[1:], ends)
    passed = jnp.sum(_counts.less(total, after), dtype=np.int32)
    row = jnp.minimum(passed, len(rest) - 1)
    tables = _fixed(_quotas(logs, rest) / 2), _counts.count_of(rest), after
    step, sizes, below = jax.tree.map(lambda x: x[row], tables)
    more = _in_program(step, sizes, _counts.subtract(total, below))
    return jnp.asarray(path[1:], np.int32)[row] + more


def _quotas(logs: np.ndarray, sizes: np.ndarray) -> np.ndarray:
    """Those at the factor with which the last pool is full.

    Who would have more than so many bits is full long before.
    """
    full = np.log2(np.maximum(sizes, 1)) - logs
    full = full.max(-1, initial=-np.inf, keepdims=True)
    result: np.ndarray = np.exp2(np.minimum(logs + full, _WHOLE))
    return result


def _on_host(quotas: np.ndarray, sizes: np.ndarray, total: int) -> np.ndarray:
    """As below, where numbers have 64 bits: nothing is compiled for it."""
    full = sizes << _PART
    low, high = np.full_like(full, 2 ** (_PART - 1)), full
    for bit in range(1, _WHOLE + _PART + 1):
        step = np.minimum(np.ldexp(quotas, _PART - bit), full).astype(np.int64)
        more = low + np.minimum(step, full - low)
        if np.minimum(more >> _PART, sizes).sum() <= total:
            low = more
        else:
            high = more
    least, most = (np.minimum(x >> _PART, sizes) for x in (low, high))
    before = np.cumsum(most - least) - (most - least)
    rest = np.clip(total - least.sum() - before, 0, most - least)
    counts: np.ndarray = least + rest
    return counts.astype(np.int32)


@jax.jit
def _in_program(step: _Quota, sizes: Count, total: Count) -> jax.Array:
    """The factor bit by bit, from what half of the largest makes of quotas."""

    def counts(quotas: _Quota) -> Count:
        small = _counts.less(quotas.whole, sizes)
        return _counts.where(small, quotas.whole, sizes)

    def bit(_: Any, now: tuple[_Quota, _Quota, _Quota]) -> Any:
        step, low, high = now
        more = _plus(low, step)
        # Halves are cut off: what all smaller ones add is no more than this one.
        fits = ~_counts.less(total, _counts.total(counts(more)))
        low, high = jax.tree.map(
            lambda a, b: jnp.where(fits, a, b), (more, high), (low, more)
        )
        return _half(step), low, high

    zero = jax.tree.map(jnp.zeros_like, sizes)
    low = _Quota(zero, jnp.full_like(step.part, 2**31))  # rounded, not cut off
    high = _Quota(sizes, jnp.zeros_like(step.part))
    start = vary_like((step, low, high), total)
    _, low, high = lax.fori_loop(0, _WHOLE + _PART, bit, start)
    least, most = counts(low), counts(high)
    rest = _counts.subtract(total, _counts.total(least))
    more = _counts.share(rest, _counts.subtract(most, least))
    return _counts.to_int32(_counts.add(least, more))


def _fixed(numbers: np.ndarray) -> _Quota:
    whole = np.floor(numbers)
    part = np.asarray((numbers - whole) * 2.0**_PART, np.uint32)
    return _Quota(_counts.count_of(whole), jnp.asarray(part))


def _plus(a: _Quota, b: _Quota) -> _Quota:
    part = a.part + b.part  # of 2**32
    whole = _counts.add(a.whole, b.whole)
    carry = (part < a.part).astype(np.int32)
    return _Quota(_counts.add(whole, Count(jnp.zeros_like(carry), carry)), part)


def _half(a: _Quota) -> _Quota:
    high, low = a.whole
    odd = (low & 1).astype(np.uint32)
    return _Quota(
        Count(high >> 1, (low >> 1) | ((high & 1) << 15)),
        (a.part >> 1) | (odd << 31),
    )
