"""Which weights of one product stay, however a structure counts them."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

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
      marks: Bool, the units that a criterion keeps: their number is what counts.
      fixed: Whether those themselves are to stay.
    """

    def __init__(
        self,
        method: Method,
        only: Callable[[Any], Tree],
        value: Any,
        marks: jax.Array,
        fixed: bool,
    ) -> None:
        self.structure, self._only = method.structure, only
        self.value, self.marks, self.fixed = value, marks, fixed
        # In one ranking each product loses what it lost there.
        self.own = fixed or method.allocation.joint
        axes = -1 if self.structure.few_units else tuple(range(1, marks.ndim))
        self.axes = axes
        self.total = _count(jnp.ones_like(marks), axes)
        self.lost = self.total - _count(marks, axes)
        self.before = np.zeros_like(self.total)  # units met so far

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

    def part(self, steps: Steps, seen: np.ndarray) -> "Part":
        """What one product multiplies; groups that saw no row stay whole."""
        return Part(self, steps, seen)


class Part:
    """How a product's mask is chosen; see ``Choose``."""

    def __init__(self, leaf: Leaf, steps: Steps, seen: np.ndarray) -> None:
        self.leaf, self.steps, self.seen = leaf, steps, seen
        ones = jnp.ones(
            jax.eval_shape(lambda x: look(steps, x), leaf.value).shape, bool
        )
        self.ones = ones & jnp.asarray(seen)[:, None, None]
        self.here = self._units_of(self.ones)
        many = _count(self.here, leaf.axes)
        if leaf.own:
            self.lost = _count(self.here & ~leaf.marks, leaf.axes)
        else:
            ends = [leaf.before, leaf.before + many]
            first, last = (_share(leaf.lost, x, leaf.total) for x in ends)
            self.lost, leaf.before = last - first, ends[1]
        self.many = many
        self._done = 0 * many  # of a sweep: units of the rows before
        # Weights can be chosen a few rows at a time.
        self.by_rows = leaf.structure.moves and not leaf.structure.few_units
        self.together = self._together() if leaf.structure.few_units else None

    def numbers(self) -> jax.Array:
        """Which unit each weight belongs to, [G, K, N]."""
        marks = self.leaf.marks
        each = jnp.arange(marks.size, dtype=jnp.int32).reshape(marks.shape)
        return look(self.steps, self.leaf.weights(each))

    def _together(self) -> Together | None:
        """None: rows of a pool are not those of one column, the same in all."""
        size = self.leaf.marks.shape[-1]
        pools = np.asarray(self.numbers()) // size
        order = np.argsort(pools[0, :, 0], kind="stable")
        if self.leaf.fixed or len(order) % size:
            return None
        sorted_ = pools[:, order].reshape(len(pools), -1, size, pools.shape[2])
        if (sorted_ != sorted_[:, :, :1]).any():
            return None
        # Pools in the order in which their first rows come.
        first = np.argsort(order.reshape(-1, size).min(1))
        order = order.reshape(-1, size)[first].ravel()
        return Together(order, size, self._stay())

    def _stay(self) -> np.int32:
        """How many units each pool keeps, where all keep equally many."""
        here = self.many > 0
        return np.int32(np.max(np.where(here, self.many - self.lost, 0)))

    def _units_of(self, matrix: jax.Array) -> jax.Array:
        zeros = jnp.zeros(jnp.shape(self.leaf.value), bool)
        whole = put(self.steps, zeros, matrix)
        if not self.leaf.structure.moves:
            whole = whole.astype(jnp.float32)
        return self.leaf.units(whole) > 0

    def __call__(
        self,
        scores: jax.Array,
        share: float = 1.0,
        rows: tuple[int, int] | None = None,
    ) -> jax.Array:
        leaf = self.leaf
        if leaf.fixed:
            return look(self.steps, leaf.weights(leaf.marks)) | ~self.ones
        here, many, lost = self.here, self.many, self.lost
        if rows is not None:
            inside = jnp.arange(scores.shape[1])
            inside = (inside >= rows[0]) & (inside < rows[1])
            here = self._units_of(self.ones & inside[:, None])
            part = _count(here, leaf.axes)
            first = self._done if rows[0] else 0 * part
            lost = _share(self.lost, first + part, many) - _share(
                self.lost, first, many
            )
            self._done, many = first + part, part
        lost = np.rint(share * lost).astype(np.int64)
        whole = put(
            self.steps, jnp.zeros(jnp.shape(leaf.value), scores.dtype), scores
        )
        units = jnp.where(here, leaf.units(whole), -jnp.inf)
        stay = (many - lost).astype(np.int32)
        if leaf.structure.few_units:
            least = np.max(np.where(many > 0, stay, 0))
            marks = select_few([units], jnp.asarray([least], np.int32), None)[0]
        else:
            marks = select([units], jnp.asarray(stay), None)[0]
        return look(self.steps, leaf.weights(marks & here)) | ~self.ones


def _share(lost: np.ndarray, part: np.ndarray, whole: np.ndarray) -> np.ndarray:
    """How many of the lost have gone after a part of the whole, rounded."""
    result: np.ndarray = np.rint(lost * (part / np.maximum(whole, 1))).astype(
        np.int64
    )
    return result


def _count(marks: jax.Array, axes: Any) -> np.ndarray:
    """How many are marked in each pool, exactly."""
    return np.asarray(_counted(marks, axes)).astype(np.int64)


_counted = jax.jit(
    lambda marks, axes: jnp.sum(marks, axes, dtype=jnp.int32),
    static_argnums=1,
)


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
