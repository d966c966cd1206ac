"""How many units are wanted, on the way into a compiled program.

What Python's numbers ask for is counted on the host, and the program is handed the
counts: one that held the numbers would be compiled for each. Numbers that are traced
go in as they are.
"""

from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache, partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jprune._core.checks import is_fraction
from jprune._core.typing import Tree
from jprune._core.varying import computed_now
from jprune.choosing.families import Method
from jprune.choosing.targets import Counts, counts_of


@partial(
    jax.tree_util.register_dataclass,
    data_fields=("known", "arrays"),
    meta_fields=("floats",),
)
@dataclass(frozen=True)
class Wanted:
    """Counts of units, or the numbers of which they are made.

    The numbers are a sparsity and which fraction is taken off each count.
    """

    known: Counts | None  # where both are Python's
    arrays: tuple[jax.Array | None, ...] = ()  # else those that are not
    floats: tuple[float | None, ...] = ()  # and those that are

    def counts(self, method: Method, params: Tree) -> Counts:
        """How many units stay; see :func:`counts_of`."""
        if self.known is not None:
            return self.known
        numbers = zip(self.arrays, self.floats, strict=True)
        return counts_of(
            method, params, *(y if x is None else x for x, y in numbers)
        )

    def if_valid(self, due: jax.Array) -> jax.Array:
        """``due`` where all numbers lie in [0, 1]; else masks are to stay."""
        for number in self.arrays:
            if number is not None:
                due &= is_fraction(number)
        return due


def wanting(method: Method) -> Callable[..., Wanted]:
    """A function of parameters, a sparsity and what is taken off each count.

    The counts of the last numbers are remembered.
    """

    @lru_cache(maxsize=2)
    def counted(
        form: Any, shapes: Any, sparsity: float, dropped: float
    ) -> Counts:
        leaves = [jax.ShapeDtypeStruct(*x) for x in shapes]
        params = jax.tree.unflatten(form, leaves)
        with computed_now():
            counts = counts_of(method, params, sparsity, dropped)
            known: Counts = jax.tree.map(np.asarray, counts)
        return known

    def wanted(params: Tree, sparsity: Any, dropped: Any = 0.0) -> Wanted:
        numbers = sparsity, dropped
        arrays = tuple(x if isinstance(x, jax.Array) else None for x in numbers)
        if any(x is not None for x in arrays):
            floats = (None if isinstance(x, jax.Array) else x for x in numbers)
            return Wanted(None, arrays, tuple(floats))
        leaves, form = jax.tree.flatten(params)
        shapes = tuple((np.shape(x), jnp.result_type(x)) for x in leaves)
        return Wanted(counted(form, shapes, *numbers))

    return wanted
