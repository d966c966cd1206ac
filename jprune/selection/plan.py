"""Which part of a tree an array of counts speaks of, and how the tree is read.

An *entry* is what one leaf has of one pool; entries follow each other leaf after
leaf. What compiling costs are programs that differ: so leaves of one size are read by
one program, in a loop over *blocks* of a few of them, and what is done leaf by leaf
is the same program for all leaves of one size.
"""

import math
from collections.abc import Callable, Iterable, Sequence
from functools import partial
from typing import Any, NamedTuple, TypeAlias

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from jprune._core import counts as _counts
from jprune._core.counts import Count
from jprune._core.layout import on_mesh
from jprune._core.trees import concatenate_many
from jprune._core.xla import made_once
from jprune.selection.keys import none

_BLOCK = 2**20  # bytes: what a core has near
_FEW = 2**16  # bytes that may be copied in any case

Group: TypeAlias = tuple[tuple[int, ...], ...]
"""Blocks of leaves, alike if there are several."""


class ReadPlan(NamedTuple):
    """How values go to leaves, and counts come back.

    Each entry is a pool of its own; or, if ``joint``, all are one pool.
    """

    joint: bool
    entries: tuple[int, ...]  # how many each leaf has
    units: tuple[int, ...]  # how many each of them has
    groups: tuple[Group, ...]

    @property
    def sizes(self) -> np.ndarray:
        """Units of each entry, ``[1, entries]`` int32."""
        return np.repeat(self.units, self.entries).astype(np.int32)[None]

    def pooled(self, each: jax.Array) -> Count:
        """Counts ``[rows, entries]`` to those of pools, ``[rows, pools]``."""
        if not self.joint:
            return _counts.count_of(each)
        if self.sizes.sum(dtype=np.int64) < 2**31:
            return _counts.count_of(each.sum(1, keepdims=True, dtype=np.int32))
        total = _counts.total(_counts.count_of(each.T))
        return Count(*(part[:, None] for part in total))

    def to_leaves(self, values: jax.Array) -> list[jax.Array]:
        """``[..., entries]`` cut into one array for each leaf; of one, for all."""
        return split_entries(values, self.entries)

    @property
    def whole(self) -> bool:
        """Whether a search must see all leaves at once."""
        return self.joint or all(len(group) == 1 for group in self.groups)

    def read(
        self,
        function: Callable[..., jax.Array],
        leaves: list[jax.Array],
        values: jax.Array | None = None,
    ) -> jax.Array:
        """Some numbers of each entry, ``[numbers, entries]``.

        Args:
          function: Of several arrays, and what is their own of the values if there
            are any, to the numbers of their entries.
          leaves: Arrays ``[pools, ...]``.
          values: ``[rows, entries]``.
        """
        found, order = [], []
        lone = [i for group in self.groups if len(group) == 1 for i in group]
        if lone:
            order.append(self._entries(lone))
            blocks = [_stacked([leaves[i] for i in block]) for block in lone]
            own = () if values is None else (_picked(values, order[-1]),)
            found.append(function(blocks, *own))
        for group in self.groups:
            if len(group) > 1:
                order.append(self._entries(group))
                own = () if values is None else (_picked(values, order[-1]),)
                found.append(_in_turn(function, leaves, group, *own))
        # To fill the last of blocks some leaves are read twice.
        _, first = np.unique(np.concatenate(order), return_index=True)
        return _picked(jnp.concatenate(found, axis=1), first)

    def _entries(self, group: Sequence[tuple[int, ...]]) -> np.ndarray:
        """The entries of the leaves of some blocks, in turn."""
        ends = np.cumsum(self.entries)
        return np.concatenate(
            [
                np.arange(ends[i] - self.entries[i], ends[i])
                for block in group
                for i in block
            ]
        )


def _in_turn(
    function: Callable[..., jax.Array],
    leaves: list[jax.Array],
    group: Group,
    values: jax.Array | None = None,
) -> jax.Array:
    """Of many blocks: in a loop, so that one exists at a time."""
    blocks = [partial(_stacked, [leaves[i] for i in block]) for block in group]
    own: tuple[jax.Array, ...] = ()
    if values is not None:
        parts = values.reshape(len(values), len(group), -1)
        own = (parts.swapaxes(0, 1),)

    def one(i: Any, own: Any) -> tuple[Any, jax.Array]:
        return i + 1, function([lax.switch(i, blocks)], *own)

    _, each = lax.scan(one, np.int32(0), own, length=len(group))
    return each.swapaxes(0, 1).reshape(each.shape[1], -1)


def at_once(
    function: Callable[..., jax.Array],
    blocks: list[jax.Array],
    values: jax.Array | None = None,
) -> jax.Array:
    """``function`` of each array and its own values, ``[numbers, entries]``."""
    if values is None:
        return concatenate_many([function(x) for x in blocks])
    own = split_entries(values, [len(x) for x in blocks])
    return concatenate_many(
        [function(*part) for part in zip(blocks, own, strict=True)]
    )


def _picked(values: jax.Array, entries: np.ndarray) -> jax.Array:
    if np.array_equal(entries, np.arange(values.shape[1])):
        return values
    return values[:, entries]


def plan_of(
    leaves: list[jax.Array],
    *,
    joint: bool,
    names: Sequence[str] | None = None,
) -> ReadPlan:
    """A plan for arrays ``[pools, rows, units]``.

    Leaves of one size are read in blocks, which are copies: of at most a sixteenth
    of all, and of a few small leaves of any size. Larger ones are read as they are.

    On a mesh a block holds leaves of one name, see ``layer_names``. The same
    kernels of several layers are as a rule divided alike, which no type says where
    axes are Auto. Where they are not, their scores travel between devices.
    """
    names = names or [""] * len(leaves)
    size = [x.size * x.dtype.itemsize for x in leaves]
    units = [math.prod(x.shape[1:]) for x in leaves]
    most = sum(size) // 16
    block = min(most, _BLOCK)
    alike: dict[Any, list[int]] = {}
    for i, x in enumerate(leaves):
        name = names[i] if on_mesh(x) else "here"
        copied = 0 < size[i] <= max(most, _FEW) and name
        key = (jax.typeof(x), name) if copied else i
        alike.setdefault(key, []).append(i)
    groups: list[Group] = []
    few: dict[Any, list[int]] = {}
    for members in alike.values():
        each, x = size[members[0]], leaves[members[0]]
        little = 0 < len(members) * each <= max(block, _FEW)
        if little and not on_mesh(x):
            few.setdefault(x.dtype, []).extend(members)
        elif little:
            groups.append((tuple(members),))
        elif len(members) > 1 and each <= most:
            groups.append(_filled(members, max(1, block // each)))
        else:
            groups += [((i,),) for i in members]
    for members in few.values():  # the smallest in one block
        members.sort(key=lambda i: units[i])
        pools = np.cumsum([len(leaves[i]) for i in members])
        row = np.array([size[i] // len(leaves[i]) for i in members])
        fit = np.searchsorted(pools * row, max(block, _FEW), side="right")
        groups += [(tuple(members[:fit]),)] if fit else []
        groups += [((i,),) for i in members[fit:]]
    entries = tuple(map(len, leaves))
    return ReadPlan(joint, entries, tuple(units), tuple(groups))


def _filled(members: list[int], many: int) -> Group:
    """Blocks of the same number of leaves; to fill the last some stand twice."""
    blocks = -(-len(members) // many)
    each = -(-len(members) // blocks)
    return tuple(map(tuple, np.resize(members, (blocks, each)).tolist()))


def _stacked(leaves: list[jax.Array]) -> jax.Array:
    """Arrays as one, pools after pools; of various sizes, filled in front.

    NaN and False are never counted there: places are counted from the end.
    """
    if len({x.shape[1:] for x in leaves}) > 1:
        flat = [x.reshape(len(x), 1, math.prod(x.shape[1:])) for x in leaves]
        most = max(x.shape[2] for x in flat)
        leaves = [
            lax.pad(
                x,
                none(x.dtype),
                ((0, 0, 0), (0, 0, 0), (most - x.shape[2], 0, 0)),
            )
            for x in flat
        ]
    return jnp.concatenate(leaves) if len(leaves) > 1 else leaves[0]


def split_entries(values: jax.Array, sizes: Iterable[int]) -> list[jax.Array]:
    """``[..., entries]`` cut into parts of some sizes; ``[..., 1]`` is for all.

    Many parts of one size are taken off the front, one after the other: slices at
    different places would be different programs, and so would be all that is done
    with them.
    """
    sizes, (*rows, entries) = list(sizes), values.shape
    if entries == 1:
        return [jnp.broadcast_to(values, (*rows, n)) for n in sizes]
    starts = np.cumsum([0, *sizes])
    parts: dict[int, jax.Array] = {}
    for size in set(sizes):
        alike = [i for i, n in enumerate(sizes) if n == size]
        if len(alike) < 4:
            for i in alike:
                parts[i] = values[..., starts[i] : starts[i + 1]]
            continue
        few = math.isqrt(len(alike) - 1) + 1
        filled = np.resize(alike, (few, few))
        table = values[..., starts[filled][..., None] + np.arange(size)]
        table = jnp.moveaxis(table, (-3, -2), (0, 1))
        for i in range(0, len(alike), few):
            row, table = _first(table)
            for j in alike[i : i + few]:
                parts[j], row = _first(row)
    return [parts[i] for i in range(len(sizes))]


def _first(values: jax.Array) -> tuple[jax.Array, jax.Array]:
    """The first of some values, and all with the next one in front."""
    return values[0], made_once(jnp.roll(values, -1, 0))
