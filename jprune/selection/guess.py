"""Where the search begins: at keys around the wanted one in a small sample.

A guess costs passes if it is bad, and nothing else.
"""

import math

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from jprune._core import counts as _counts
from jprune._core.counts import Count
from jprune._core.layout import on_mesh
from jprune._core.trees import concatenate_many
from jprune.selection.keys import (
    full_range,
    keys_of,
    landmarks,
    none,
    scores_of,
)
from jprune.selection.search import POINTS, SPREAD

# Where nothing is sampled: weights and gradients are often of this size.
_MAGNITUDES = np.array([0, 1e-4, 1e-3, 1e-2, 0.1, 1, 10])


def guess(
    leaves: list[jax.Array], lost: Count, available: Count, *, joint: bool
) -> jax.Array:
    """Keys to begin with, ``[points, pools]`` or ``[points, 1]``.

    Args:
      leaves: Scores ``[pools, ...]``; bits if not all are candidates.
      lost: How many candidates go, ``[1, pools]``.
      available: Of how many.
      joint: Whether all pools are one.
    """
    wide = any(x.dtype.itemsize == 8 for x in leaves)
    real = np.dtype(np.float64 if wide else np.float32)
    some = _sample(leaves, joint)
    if not some:
        return keys_of(jnp.asarray(_MAGNITUDES, real))[:, None]
    scores = concatenate_many([scores_of(x).astype(real) for x in some])
    keys = lax.sort(keys_of(scores.T if joint else scores), dimension=0)
    # Without what was filled in, or is no candidate.
    low, high = full_range(keys.dtype)
    seen = jnp.sum(keys < high, 0, keepdims=True).astype(np.float32)
    whole = jnp.maximum(_counts.to_float(available), 1).astype(np.float32)
    share = _counts.to_float(lost).astype(np.float32) / whole
    # As far to both sides as three standard errors can be.
    far = (1.5 * SPREAD * math.sqrt(len(keys))).astype(np.float32)
    places = jnp.clip(share * seen + far, 0, len(keys) - 1).astype(np.int32)
    # Equals have one key, and those beside it are asked for. Beside 0 are the
    # subnormal numbers, each of which is 0 to some backends.
    beside = np.arange(POINTS)[:, None] - POINTS // 2
    tiny = int(np.array(jnp.finfo(real).tiny, real).view(keys.dtype))
    of_zero = np.array([-tiny, 1 - tiny, -1, 0, 1, tiny - 1, tiny])[:, None]
    found = jnp.take_along_axis(keys, places, axis=0)
    steps = jnp.where(
        found == landmarks(keys.dtype)[0],
        of_zero.astype(keys.dtype),
        beside.astype(keys.dtype),
    )
    return jnp.clip(found + steps, low + 1, high - 1)


def _sample(leaves: list[jax.Array], joint: bool) -> list[jax.Array]:
    """One in 256 units at regular places, ``[units, pools]`` or all in one row.

    Of pools apart as many each; of one the more of a leaf the larger it is, and of
    the largest only. None on a mesh, where they would have to travel.
    """
    sizes = [math.prod(x.shape[1:]) for x in leaves]
    number = sum(sizes) if joint else max(sizes)
    most = min(number // 256, 4096)
    if most < 16 or any(map(on_mesh, leaves)):
        return []
    largest = sorted(sizes)[-16:][0] if joint else 0
    some = []
    for x, size in zip(leaves, sizes, strict=True):
        if size < largest:
            continue
        flat = x.reshape(len(x), size)
        part = min(size, round(most * size / number) if joint else most)
        # An odd stride meets all columns of a kernel, whose width is seldom odd.
        stride = max(1, size // max(part, 1) - 1) | 1
        taken = flat[:, : part * stride : stride]
        if not joint:
            pads = ((0, most - part, 0), (0, 0, 0))
            taken = lax.pad(taken.T, none(x.dtype), pads)
        some.append(taken)
    return some
