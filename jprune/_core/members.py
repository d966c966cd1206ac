"""Which units the positions of parameters are a part of, where units span leaves."""

from collections.abc import Callable, Iterable
from typing import Any, NamedTuple, TypeAlias

import jax
import jax.numpy as jnp
import numpy as np

from jprune._core.layout import everywhere
from jprune._core.trees import wide_dtype

Numbers: TypeAlias = np.ndarray
"""Of the positions of an axis: int [n, factors], or [layers, n, factors] of stacked
layers; -1 is no unit."""


class Members(NamedTuple):
    """Which units the positions of axes are a part of, where units span leaves."""

    # Path and array of a leaf -> the numbers of each axis. None: it has none.
    of: Callable[[Any, Any], tuple[Numbers, ...] | None]
    pools: tuple[np.ndarray, ...]  # int [layers, n]: the units of each
    # Path and array of a leaf -> its axes that products sum over: what a unit on
    # one of them is read by lies along the others.
    summed: Callable[[Any, Any], tuple[int, ...]]

    def reads(self, path: Any, x: Any) -> list[tuple[int, Numbers]]:
        """The axes along which a leaf reads units, with the numbers of these."""
        numbers = self.of(path, x)
        if numbers is None:
            return []
        return [
            (axis, numbers[axis])
            for axis in self.summed(path, x)
            if (numbers[axis] >= 0).any()
        ]

    def add_up(
        self, lines: Iterable[tuple[Numbers, jax.Array]]
    ) -> list[jax.Array]:
        """What units have in all: ``[layers, n]`` of each pool.

        ``lines`` are the numbers of axes, with one value for each position.
        """
        lines = list(lines)
        total = 1 + max(int(pool.max()) for pool in self.pools)
        dtype = wide_dtype(*(line.dtype for _, line in lines))
        sums = jnp.zeros(total + 1, dtype)  # the last is no unit
        for numbers, line in lines:
            line = jnp.broadcast_to(
                line.astype(dtype)[..., None], numbers.shape
            )
            sums = sums.at[numbers].add(line)
        return [sums[pool] for pool in self.pools]


def line_of(x: jax.Array, axis: int, stacked: bool) -> jax.Array:
    """The sums over all axes but one, and but the layers of a stack."""
    kept = (0, axis) if stacked else (axis,)
    rest = tuple(k for k in range(x.ndim) if k not in kept)
    return everywhere(jnp.sum(x, rest, wide_dtype(x.dtype)))
