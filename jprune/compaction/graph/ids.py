"""Names for positions of axes, and which names stand for the same unit.

Every position of an axis has a row of ids: its *factors*. It is there as long as
all of them are: after heads and their width were merged, position ``(i, j)`` has
the ids of head ``i`` and of width ``j``. Equations unite ids, or split one id
into factors; 0 stands for "no factor". A frozen id is never removed.
"""

import numpy as np

from jprune.compaction.graph.constants import Array


class Ids:
    """A union-find over ids, with factors and reasons to stay."""

    def __init__(self) -> None:
        self._parent = np.zeros(1, np.int64)
        self._factors = np.zeros((1, 2), np.int64)  # 0: not split
        self._why = np.full(1, -1)  # index of the reason that froze an id
        self._reasons: dict[str, int] = {}
        self._size = 1
        self._starts: list[int] = []

    def new(self, n: int, why: str | None = None) -> Array:
        """``n`` positions that nothing is known about, ``[n, 1]``."""
        start, self._size = self._size, self._size + n
        self._starts.append(start)
        if self._size > len(self._parent):
            room = np.arange(len(self._parent), 2 * self._size)
            self._parent = np.concatenate([self._parent, room])
            none = np.zeros((len(room), 2), np.int64)
            self._factors = np.concatenate([self._factors, none])
            self._why = np.concatenate([self._why, np.full(len(room), -1)])
        ids = np.arange(start, self._size)[:, None]
        if why is not None:
            self.freeze(ids, why)
        return ids

    def batch(self, ids: Array) -> Array:
        """Which call of :meth:`new` made each."""
        return np.searchsorted(self._starts, ids, "right")

    def find(self, ids: Array) -> Array:
        """The id that stands for each."""
        roots = self._parent[ids]
        while True:
            above = self._parent[roots]
            if np.array_equal(above, roots):
                break
            roots = above
        self._parent[ids] = roots
        return roots

    def resolve(self, ids: Array) -> Array:
        """The same rows in terms of what is not split, zeros last."""
        ids = self.find(ids)
        while (inner := self._factors[ids, 1] > 0).any():
            outer = np.where(inner, self._factors[ids, 0], ids)
            ids = np.stack([outer, np.where(inner, self._factors[ids, 1], 0)])
            ids = self.find(np.moveaxis(ids, 0, -1))
            ids = ids.reshape(*ids.shape[:-2], -1)
        if ids.shape[-1] > 1:
            order = np.argsort(ids == 0, axis=-1, kind="stable")
            ids = np.take_along_axis(ids, order, -1)
            used = max(int((ids > 0).sum(-1).max(initial=0)), 1)
            ids = ids[..., :used]
        return ids

    def freeze(self, ids: Array, why: str) -> None:
        """Positions with these ids stay; the first reason is remembered."""
        roots = np.unique(self.resolve(ids))
        roots = roots[(roots > 0) & (self._why[roots] < 0)]
        self._why[roots] = self._reasons.setdefault(why, len(self._reasons))

    def frozen(self) -> dict[int, str]:
        """The reason for every id that stands for a frozen one."""
        ids = np.flatnonzero(self._why >= 0)[:, None]
        roots, names = self.resolve(ids), list(self._reasons)
        found: dict[int, str] = {}
        for row, why in zip(roots.tolist(), self._why[ids[:, 0]], strict=True):
            for root in row:
                found.setdefault(root, names[why])
        found.pop(0, None)
        return found

    def union(self, a: Array, b: Array, why: str) -> None:
        """Position by position the same unit; frozen if that can't be said."""
        if a is b:
            return
        while True:
            a, b = self.resolve(a), self.resolve(b)
            many_a, many_b = (a > 0).sum(-1), (b > 0).sum(-1)
            same = many_a == many_b
            width = min(a.shape[1], b.shape[1])
            self._link(a[same, :width].ravel(), b[same, :width].ravel())
            if same.all():
                return
            swap = (many_a > many_b)[:, None]
            width = max(a.shape[1], b.shape[1])
            a, b = (
                np.pad(x, ((0, 0), (0, width - x.shape[1]))) for x in (a, b)
            )
            few, more = np.where(swap, b, a)[~same], np.where(swap, a, b)[~same]
            one = (few > 0).sum(-1) == 1
            _, first = np.unique(few[:, 0], return_index=True)
            if not one.all() or np.isin(few[:, 0], more).any():
                self.freeze(few, why)
                self.freeze(more, why)
                return
            self._split(few[first, 0], more[first])
            a, b = few, more

    def split(
        self, ids: Array, sizes: tuple[int, ...], why: str
    ) -> list[Array]:
        """Ids of the axes that one axis is the product of."""
        ids = self.resolve(ids)
        parts: list[list[Array]] = [[] for _ in sizes]
        for column in np.moveaxis(ids.reshape(*sizes, -1), -1, 0):
            axes = [
                axis
                for axis, size in enumerate(sizes)
                if size > 1 and (column != column.take([0], axis)).any()
            ]
            if len(axes) > 1:
                fresh = [self.new(sizes[axis]) for axis in axes]
                kept = tuple(
                    slice(None) if axis in axes else 0
                    for axis in range(len(sizes))
                )
                self.union(column[kept].reshape(-1, 1), merge(fresh), why)
                for axis, part in zip(axes, fresh, strict=True):
                    parts[axis].append(part)
            elif column.any():
                axis = axes[0] if axes else int(np.argmax(sizes))
                line = np.moveaxis(column, axis, 0).reshape(sizes[axis], -1)
                parts[axis].append(line[:, :1])
        return [
            np.concatenate(part, -1) if part else self.new(size, why)
            for part, size in zip(parts, sizes, strict=True)
        ]

    def _link(self, a: Array, b: Array) -> None:
        """Unites pairs of ids that are not split."""
        while True:
            a, b = self.find(a), self.find(b)
            low, high = np.minimum(a, b), np.maximum(a, b)
            apart = low != high
            if not apart.any():
                return
            a, b = low[apart], high[apart]
            np.minimum.at(self._parent, b, a)
            # The one that stays inherits the reason.
            inherit = (self._why[a] < 0) & (self._why[b] >= 0)
            self._why[a[inherit]] = self._why[b[inherit]]

    def _split(self, roots: Array, factors: Array) -> None:
        """From now on each root is the product of a row of factors."""
        for row in np.unique((factors > 0).sum(-1)):
            here = (factors > 0).sum(-1) == row
            these, inner = roots[here], factors[here]
            for column in range(int(row) - 1):
                last = column == row - 2
                rest = inner[:, row - 1] if last else self.new(len(these))[:, 0]
                self._factors[these] = np.stack([inner[:, column], rest], -1)
                these = rest


def merge(parts: list[Array]) -> Array:
    """Ids of the axis that is the product of some axes."""
    sizes = tuple(len(part) for part in parts)
    wide = [
        np.broadcast_to(
            part.reshape(
                *(1,) * k,
                len(part),
                *(1,) * (len(sizes) - k - 1),
                part.shape[1],
            ),
            (*sizes, part.shape[1]),
        )
        for k, part in enumerate(parts)
    ]
    whole = np.concatenate(wide, -1)
    return whole.reshape(int(np.prod(sizes)), whole.shape[-1])
