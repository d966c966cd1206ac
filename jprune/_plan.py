"""Which part of a tree an array of counts speaks of, and what is read at once.

An *entry* is what one leaf has of one pool; entries follow each other leaf after
leaf. Small leaves of one shape are read in *blocks*: a program for each leaf of
hundreds would take long to compile and to start.
"""

import math
from collections.abc import Callable, Iterable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from jprune import _counts
from jprune._counts import Count
from jprune._trees import together


class Plan(NamedTuple):
    """How values go to leaves and blocks, and counts come back.

    Each entry is a pool of its own; or, if ``joint``, all are one pool.
    """

    joint: bool
    pools: tuple[int, ...]  # entries of each leaf
    blocks: tuple[tuple[int, ...], ...]  # leaves that are read together

    def pooled(self, each: jax.Array) -> Count:
        """Counts ``[..., entries]`` to those of pools, ``[..., pools]``."""
        counts = _counts.count_of(each)
        if not self.joint:
            return counts
        first = jax.tree.map(lambda c: jnp.moveaxis(c, -1, 0), counts)
        return jax.tree.map(lambda c: c[..., None], _counts.total(first))

    def to_leaves(self, values: jax.Array) -> list[jax.Array]:
        """``[..., entries]`` cut into one array for each leaf; of one, for all."""
        return _split(values, self.pools)

    def to_blocks(self, values: jax.Array) -> list[jax.Array]:
        """The same for each block."""
        if self._moves and values.shape[-1] > 1:
            values = values[..., self._order]
        sizes = [sum(self.pools[i] for i in block) for block in self.blocks]
        return _split(values, sizes)

    def read(
        self,
        read: Callable[..., list[jax.Array]],
        leaves: list[Any],
        values: Iterable[jax.Array] | None = None,
    ) -> jax.Array:
        """Some numbers of each entry, ``[numbers, entries]``.

        Args:
          read: From a leaf, and what is its own of the values if there are any,
            to some numbers ``[pools]`` each.
          leaves: Trees of arrays ``[pools, ...]``, alike within a block.
          values: Values of the blocks.
        """
        own = [() if values is None else (v,) for v in values or self.blocks]
        found: list[list[jax.Array]] = []
        for block, value in zip(self.blocks, own, strict=True):
            parts = [leaves[i] for i in block]
            if len(block) > 1:
                # One block after the other, that only one is there at a time;
                # and not outside of a loop, where they all would be.
                parts, value, _ = lax.optimization_barrier(
                    (parts, value, found[-1:])
                )
            found.append(read(_stacked(parts), *value))
        if all(x.shape == (1,) for x in jax.tree.leaves(found)):
            flat = together([x for numbers in found for x in numbers])
            numbers = flat.reshape(len(found), -1).T
        else:
            numbers = together([jnp.stack(numbers) for numbers in found])
        return numbers[:, np.argsort(self._order)] if self._moves else numbers

    def ends(self, each: jax.Array) -> tuple[jax.Array, jax.Array]:
        """The least and the highest of pools, from those ``[2, entries]``."""
        least, most = each
        if not self.joint:
            return least, most
        return least.min(keepdims=True), most.max(keepdims=True)

    @property
    def _order(self) -> np.ndarray:
        """The entries block after block."""
        ends = np.cumsum(self.pools)
        each = [np.arange(e - n, e) for e, n in zip(ends, self.pools, strict=True)]
        return np.concatenate([each[i] for block in self.blocks for i in block])

    @property
    def _moves(self) -> bool:
        leaves = [i for block in self.blocks for i in block]
        return leaves != sorted(leaves)


def plan_of(leaves: list[Any], *, joint: bool) -> Plan:
    """A plan for trees of arrays ``[pools, ...]``.

    A block is a copy of its leaves: of at most a sixteenth of all of them.
    Leaves on a mesh may lie on different devices, and are read one by one.
    """
    arrays = [jax.tree.leaves(leaf) for leaf in leaves]
    alike: dict[Any, list[int]] = {}
    for i, own in enumerate(arrays):
        lone = any(not jax.typeof(x).sharding.mesh.empty for x in own)
        form = i if lone else tuple((x.shape, x.dtype) for x in own)
        alike.setdefault(form, []).append(i)
    size = [sum(x.size * x.dtype.itemsize for x in own) for own in arrays]
    blocks = []
    for members in alike.values():
        many = max(1, sum(size) // 16 // max(1, size[members[0]]))
        blocks += [
            tuple(members[i : i + many]) for i in range(0, len(members), many)
        ]
    pools = tuple(len(own[0]) for own in arrays)
    return Plan(joint, pools, tuple(blocks))


def _stacked(leaves: list[Any]) -> Any:
    """Trees of arrays alike as one, pools after pools."""
    if len(leaves) == 1:
        return leaves[0]
    whole = jax.tree.map(lambda *x: jnp.concatenate(x), *leaves)
    return lax.optimization_barrier(whole)


def _split(values: jax.Array, sizes: Iterable[int]) -> list[jax.Array]:
    """``[..., entries]`` cut into parts; ``[..., 1]`` is for all."""
    sizes, (*rows, entries) = list(sizes), values.shape
    if entries == 1:
        return [jnp.broadcast_to(values, (*rows, n)) for n in sizes]
    starts = np.cumsum([0, *sizes[:-1]])
    lone = [i for i, n in enumerate(sizes) if n == 1]
    picked: dict[int, jax.Array] = {}
    if len(lone) > 16:
        picked = dict(zip(lone, _picked(values, starts[lone]), strict=True))
    return [
        picked[i] if i in picked else values[..., start : start + n]
        for i, (start, n) in enumerate(zip(starts, sizes, strict=True))
    ]


def _picked(values: jax.Array, places: np.ndarray) -> list[jax.Array]:
    """``[..., 1]`` at each place of the last axis.

    By sums and not by slices: each slice is compiled for itself, and takes as
    long as a loop over a leaf; sums are all the same program. Over two axes: the
    compiler splits a long one.
    """
    (*rows, _), number = values.shape, len(places)
    side = math.isqrt(number - 1) + 1
    empty = [(0, 0)] * len(rows) + [(0, side**2 - number)]
    square = lax.optimization_barrier(jnp.pad(values[..., places], empty))
    square = square.reshape(*rows, side, side)
    ones = np.eye(number, side**2, dtype=bool).reshape(-1, side, side)
    return [
        jnp.sum(square, (-2, -1), where=one)[..., None].astype(values.dtype)
        for one in ones
    ]
