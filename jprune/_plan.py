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
from jprune._varying import vary_like


class Plan(NamedTuple):
    """How values go to leaves and blocks, and counts come back.

    Each entry is a pool of its own; or, if ``joint``, all are one pool.
    """

    joint: bool
    entries: tuple[int, ...]  # how many each leaf has
    blocks: tuple[tuple[int, ...], ...]  # leaves that are read together

    @property
    def many(self) -> bool:
        """Whether there are so many blocks that compiling takes long."""
        return len(self.blocks) > 32

    @property
    def points(self) -> int:
        """How many keys to ask for in one pass."""
        return 3 if self.many else 7

    def pooled(self, each: jax.Array) -> Count:
        """Counts ``[..., entries]`` to those of pools, ``[..., pools]``."""
        counts = _counts.count_of(each)
        if not self.joint:
            return counts
        first = jax.tree.map(lambda c: jnp.moveaxis(c, -1, 0), counts)
        return jax.tree.map(lambda c: c[..., None], _counts.total(first))

    def to_leaves(self, values: jax.Array) -> list[jax.Array]:
        """``[..., entries]`` cut into one array for each leaf; of one, for all."""
        return split(values, self.entries)

    def to_blocks(self, values: jax.Array) -> list[jax.Array]:
        """The same for each block."""
        if self._moves and values.shape[-1] > 1:
            values = values[..., self._order]
        sizes = [sum(self.entries[i] for i in block) for block in self.blocks]
        return split(values, sizes)

    def read(
        self,
        function: Callable[..., list[jax.Array]],
        leaves: list[Any],
        *values: list[jax.Array],
    ) -> jax.Array:
        """Some numbers of each entry, ``[numbers, entries]``.

        Args:
          function: Of a leaf, and what is its own of the values, to ``[pools]``
            of each number.
          leaves: Trees of arrays ``[pools, ...]``, alike within a block.
          values: For each block.
        """
        found: list[list[jax.Array]] = []
        for block, *own in zip(self.blocks, *values, strict=True):
            parts = [leaves[i] for i in block]
            known = [*own, *(found[-1] if found else [])]

            def numbers(parts: Any = parts, own: Any = own) -> list[jax.Array]:
                return function(_stacked(parts), *own)

            # Else all blocks would be stacked before the first is read.
            after = known and len(block) > 1
            found.append(not_before(known[-1], numbers) if after else numbers())
        if all(x.shape == (1,) for x in jax.tree.leaves(found)):
            # One array of all: to stack what is of each block takes longer.
            flat = together([x for numbers in found for x in numbers])
            each = flat.reshape(len(found), -1).T
        else:
            each = together([jnp.stack(numbers) for numbers in found])
        return each[:, np.argsort(self._order)] if self._moves else each

    def ends(self, each: jax.Array) -> tuple[jax.Array, jax.Array]:
        """The least and the highest of pools, from those ``[2, entries]``."""
        least, most = each
        if not self.joint:
            return least, most
        return least.min(keepdims=True), most.max(keepdims=True)

    @property
    def _order(self) -> np.ndarray:
        """The entries block after block."""
        ends = np.cumsum(self.entries)
        each = [
            np.arange(e - n, e) for e, n in zip(ends, self.entries, strict=True)
        ]
        return np.concatenate([each[i] for block in self.blocks for i in block])

    @property
    def _moves(self) -> bool:
        leaves = [i for block in self.blocks for i in block]
        return leaves != sorted(leaves)


def plan_of(leaves: list[Any], *, joint: bool) -> Plan:
    """A plan for trees of arrays ``[pools, ...]``.

    A block is a copy of its leaves: of at most a sixteenth of all of them. How
    leaves are divided by Auto axes of a mesh is not known: they are read one by one.
    """
    arrays = [jax.tree.leaves(leaf) for leaf in leaves]
    alike: dict[Any, list[int]] = {}
    for i, own in enumerate(arrays):
        types = tuple(map(jax.typeof, own))
        meshes = [x.sharding.mesh for x in types]
        known = all(m.empty or m.are_all_axes_explicit for m in meshes)
        alike.setdefault(types if known else i, []).append(i)
    size = [sum(x.size * x.dtype.itemsize for x in own) for own in arrays]
    blocks = []
    for members in alike.values():
        many = max(1, sum(size) // 16 // max(1, size[members[0]]))
        blocks += [
            tuple(members[i : i + many]) for i in range(0, len(members), many)
        ]
    entries = tuple(len(own[0]) for own in arrays)
    return Plan(joint, entries, tuple(blocks))


def not_before(known: jax.Array, function: Callable[[], Any]) -> Any:
    """``function()``, of which nothing is computed before something is known.

    The condition always holds, but the compiler doesn't know. (Where `vmap` maps
    what is known it becomes a selection, and orders nothing.) A barrier does not
    do: it is taken away before operations are moved out of loops and ordered.
    """

    def never() -> Any:
        return jax.tree.map(
            lambda x: vary_like(jnp.zeros(x.shape, x.dtype), x),
            jax.eval_shape(function),
        )

    odd = known.ravel()[:1] & np.array(1, known.dtype)
    return lax.cond(jnp.sum(odd) < 2, function, never)


def _stacked(leaves: list[Any]) -> Any:
    """Trees of arrays alike as one, pools after pools."""
    if len(leaves) == 1:
        return leaves[0]
    return jax.tree.map(lambda *x: jnp.concatenate(x), *leaves)


def split(values: jax.Array, sizes: Iterable[int]) -> list[jax.Array]:
    """``[..., entries]`` cut into parts of some sizes; ``[..., 1]`` is for all.

    Many parts of one size are picked by sums: a slice is compiled for itself, and
    takes as long as a loop over a leaf, while sums are all the same program. Few at
    a time, as the compiler splits long sums.
    """
    sizes, (*rows, entries) = list(sizes), values.shape
    if entries == 1:
        return [jnp.broadcast_to(values, (*rows, n)) for n in sizes]
    starts = np.cumsum([0, *sizes])
    parts: dict[int, jax.Array] = {}
    for size in set(sizes):
        alike = [i for i, n in enumerate(sizes) if n == size]
        if len(alike) <= 16:
            for i in alike:
                parts[i] = values[..., starts[i] : starts[i + 1]]
            continue
        whole = values[..., starts[alike][:, None] + np.arange(size)]
        few = math.isqrt(len(alike))
        for first in range(0, len(alike), few):
            some = whole[..., first : first + few, :]
            ones = np.eye(some.shape[-2], dtype=bool)[..., None]
            for i, one in zip(alike[first:], ones, strict=False):
                part = jnp.sum(some, -2, where=one)
                parts[i] = part.astype(values.dtype)
    return [parts[i] for i in range(len(sizes))]
