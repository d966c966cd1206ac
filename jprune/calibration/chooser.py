"""Which weights of one product stay, however a structure counts them."""

import math
from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

from jprune._core.layout import everywhere
from jprune._core.trees import is_hole, rebuild
from jprune._core.typing import Tree
from jprune._core.views import Steps, look, put
from jprune.calibration.solvers.base import Together
from jprune.choosing.families import Method
from jprune.selection.ranking import select_few
from jprune.selection.select import select


class Leaf:
    """One parameter, and how many of its units go from its products in turn.

    Args:
      method: Criterion, structure and allocation.
      only: From an array to a tree in which it stands for this parameter, and all
        else is a hole.
      value: The parameter.
      marks: Bool, the units that stay by a criterion; None: :meth:`keep` says how many.
      fixed: Whether those themselves are to stay; else as many of each product.
    """

    def __init__(
        self,
        method: Method,
        only: Callable[[Any], Tree],
        value: Any,
        marks: jax.Array | None,
        fixed: bool,
    ) -> None:
        self.structure, self._only = method.structure, only
        self.value, self.marks, self.fixed = value, marks, fixed
        shape = jax.eval_shape(self.units, value).shape
        self.shape = shape
        pools = shape[:-1] if self.structure.few_units else shape[:1]
        self.pools = math.prod(pools)
        self.size = math.prod(shape) // max(self.pools, 1)
        self._lost = self._before = np.zeros(self.pools, np.int64)
        self._numbers: Any = None

    def keep(self, stay: np.ndarray) -> None:
        """So many units stay in each pool, or in all alike."""
        self._lost = self.size - np.broadcast_to(stay, self.pools)

    def units(self, x: Any) -> jax.Array:
        """The units of an array like the parameter."""
        (found,) = jax.tree.leaves(self.structure.to_units(self._only(x)))
        result: jax.Array = found
        return result

    def weights(self, marks: Any) -> jax.Array:
        """Marks of units, or numbers, as an array like the parameter."""
        tree = self.structure.to_masks(
            self._only(marks), self._only(self.value)
        )
        (found,) = jax.tree.leaves(tree)
        result: jax.Array = found
        return result

    def numbers(self, steps: Steps) -> np.ndarray:
        """Which unit each weight of a product belongs to, [G, K, N]."""
        if self._numbers is None:
            each = np.arange(math.prod(self.shape), dtype=np.int32)
            whole = self.weights(jnp.asarray(each.reshape(self.shape)))
            self._numbers = np.asarray(whole)  # on the host: there are many
        found: np.ndarray = np.asarray(look(steps, self._numbers))
        return found

    def going(self, many: np.ndarray, marked: np.ndarray | None) -> np.ndarray:
        """Of so many units of each pool, how many go from the product that is next.

        In one ranking each product loses what is not ``marked`` there.
        """
        if marked is not None:
            result: np.ndarray = many - marked
            return result
        ends = [self._before, self._before + many]
        first, last = (_share(self._lost, x, self.size) for x in ends)
        self._before = ends[1]
        result = last - first
        return result

    def part(self, steps: Steps, seen: np.ndarray) -> "Part":
        """What one product multiplies; groups that saw no row stay whole."""
        kind = Weights if self.structure.moves else Part
        return kind(self, steps, seen)


class Part:
    """How a product's mask is chosen; see ``Choose``."""

    by_rows = False  # whether some rows can be chosen from by themselves
    together: Together | None = None

    def __init__(self, leaf: Leaf, steps: Steps, seen: np.ndarray) -> None:
        self.leaf, self.steps, self.seen = leaf, steps, seen
        self._count_units()

    def _count_units(self) -> None:
        leaf = self.leaf
        shape = jax.eval_shape(lambda x: look(self.steps, x), leaf.value).shape
        seen = jnp.asarray(self.seen)[:, None, None]
        self.ones = jnp.broadcast_to(seen, shape)
        zeros = jnp.zeros(jnp.shape(leaf.value), jnp.float32)
        whole = put(self.steps, zeros, self.ones.astype(jnp.float32))
        self.here = leaf.units(whole) > 0
        marked = None
        if leaf.marks is not None:
            marked = self._counted(self.here & leaf.marks)
        self.many = self._counted(self.here)
        self.lost = leaf.going(self.many, marked)

    def _counted(self, marks: jax.Array) -> np.ndarray:
        """How many are marked in each pool."""
        pools = marks.reshape(self.leaf.pools, -1)
        return np.asarray(jnp.sum(pools, 1, dtype=np.int32)).astype(np.int64)

    def numbers(self) -> np.ndarray:
        """Which unit each weight belongs to, [G, K, N]."""
        return self.leaf.numbers(self.steps)

    def __call__(self, scores: jax.Array, share: float = 1.0) -> jax.Array:
        leaf = self.leaf
        if leaf.fixed:
            return self._marked()
        whole = put(
            self.steps, jnp.zeros(jnp.shape(leaf.value), scores.dtype), scores
        )
        units = jnp.where(self.here, leaf.units(whole), -jnp.inf)
        stay = self.many - np.rint(share * self.lost).astype(np.int64)
        marks = _best(units, stay, few=leaf.structure.few_units)
        return look(self.steps, leaf.weights(marks & self.here)) | ~self.ones

    def _marked(self) -> jax.Array:
        """What stays by the criterion."""
        leaf, seen = self.leaf, jnp.asarray(self.seen)[:, None, None]
        return look(self.steps, leaf.weights(leaf.marks)) | ~seen


class Weights(Part):
    """Where units are weights they are ranked as the product has them.

    Each pool as a row of one array, in which numbers of rows of a product say where
    its weights are: so all of a choice is one program for each shape.
    """

    def _count_units(self) -> None:
        leaf = self.leaf
        self.by_rows = not leaf.structure.few_units
        self._tables: dict[Any, _Table] = {}
        self._numbers = self.numbers()
        self._done = np.zeros(leaf.pools, np.int64)  # in the rows before
        table = self._table(None)
        self.many, marked = table.many, None
        if leaf.marks is not None:
            kept = np.asarray(leaf.marks).ravel()[self._numbers]
            kept &= self.seen[:, None, None]
            pools = self._numbers[kept] // leaf.size
            marked = np.bincount(pools, minlength=leaf.pools)
        self.lost = leaf.going(self.many, marked)
        if leaf.structure.few_units and not leaf.fixed:
            self.together = self._together()

    def _table(self, rows: tuple[int, int] | None) -> "_Table":
        if rows not in self._tables:
            numbers = self._numbers[:, slice(*(rows or (None,)))]
            self._tables[rows] = _table(self.leaf, numbers, self.seen)
        return self._tables[rows]

    def _together(self) -> Together | None:
        """None: rows of a pool are not those of one column, the same in all."""
        size = self.leaf.size
        pools = self._numbers // size
        order = np.argsort(pools[0, :, 0], kind="stable")
        if len(order) % size:
            return None
        found = pools[:, order].reshape(len(pools), -1, size, pools.shape[2])
        if (found != found[:, :, :1]).any():
            return None
        rows = order.reshape(-1, size)
        rows = rows[np.argsort(rows.min(1))]  # as their first ones come
        stay = np.max(self.many - self.lost, initial=0)
        return Together(rows.ravel(), size, np.int32(stay))

    def __call__(
        self,
        scores: jax.Array,
        share: float = 1.0,
        rows: tuple[int, int] | None = None,
    ) -> jax.Array:
        if self.leaf.fixed:
            kept = self._marked()
            return kept if rows is None else kept[:, slice(*rows)]
        table, lost = self._table(rows), self.lost
        if rows is not None:
            first = self._done if rows[0] else 0 * self._done
            self._done = first + table.many
            lost = _share(lost, self._done, self.many) - _share(
                lost, first, self.many
            )
        stay = table.many - np.rint(share * lost).astype(np.int64)
        result: jax.Array = _ranked(
            scores,
            table.places,
            stay[table.pools].astype(np.int32),
            shape=table.shape,
            few=self.leaf.structure.few_units,
        )
        return result


class _Table(NamedTuple):
    """Where the units of each pool are, in their order."""

    places: np.ndarray | None  # [P, n], of flat weights; None: in their order
    shape: tuple[int, int]
    pools: np.ndarray  # [P], those that have units here
    many: np.ndarray  # of each pool, how many


def _table(leaf: Leaf, numbers: np.ndarray, seen: np.ndarray) -> _Table:
    flat = numbers.ravel()
    places = np.arange(flat.size, dtype=np.int32)
    if not seen.all():
        places = places.reshape(numbers.shape)[seen].ravel()
    found = flat[places]
    if (found[1:] < found[:-1]).any():
        places = places[np.argsort(found, kind="stable")]
    many = np.bincount(found // leaf.size, minlength=leaf.pools)
    pools = np.flatnonzero(many)
    shape = len(pools), int(many.max(initial=0))
    if np.array_equal(places, np.arange(flat.size)) and len({*many[pools]}) < 2:
        return _Table(None, shape, pools, many)
    filled = np.full(shape, flat.size, np.int32)  # where a pool has fewer: none
    filled[np.arange(shape[1]) < many[pools, None]] = places
    return _Table(filled, shape, pools, many)


@partial(jax.jit, static_argnames=("shape", "few"))
def _ranked(
    scores: jax.Array,
    index: jax.Array | None,
    stay: jax.Array,
    *,
    shape: tuple[int, int],
    few: bool,
) -> jax.Array:
    """The mask [G, K, N] of scores, with so many in each pool."""
    flat = everywhere(scores).ravel()
    if index is None:
        return _best(flat.reshape(shape), stay, few=few).reshape(scores.shape)
    units = flat.at[index].get(mode="fill", fill_value=-jnp.inf)
    marks = _best(units, stay, few=few)
    ones = jnp.ones(flat.shape, bool)
    whole = ones.at[index.ravel()].set(marks.ravel(), mode="drop")
    return whole.reshape(scores.shape)


def _best(units: jax.Array, stay: Any, *, few: bool) -> jax.Array:
    """So many of each pool; where pools are of few units, of all the same."""
    stay = jnp.asarray(stay, np.int32)
    if few:
        return select_few([units], jnp.max(stay, initial=0)[None])[0]
    return select([units], stay)[0]


def _share(lost: np.ndarray, part: np.ndarray, whole: Any) -> np.ndarray:
    """How many of the lost have gone after a part of the whole, rounded."""
    result: np.ndarray = np.rint(lost * (part / np.maximum(whole, 1))).astype(
        np.int64
    )
    return result


def leaf_only(params: Tree, number: int) -> Callable[[Any], Tree]:
    """From an array to a tree like ``params`` that has it alone, as its leaf."""
    places = jax.tree.leaves(params, is_leaf=is_hole)
    arrays = [i for i, x in enumerate(places) if not is_hole(x)]
    at = arrays[number]

    def only(x: Any) -> Tree:
        leaves = [
            x if i == at else optax.MaskedNode() for i in range(len(places))
        ]
        return rebuild(params, leaves)

    return only
