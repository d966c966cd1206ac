"""Names for the types that appear in public signatures."""

from collections.abc import Callable
from typing import Any, TypeAlias

import jax
import optax

Tree: TypeAlias = Any
"""Any pytree of arrays."""

Masks: TypeAlias = Any
"""A tree of bool arrays, True = kept; ``MaskedNode`` where nothing is pruned."""

Where: TypeAlias = bool | str | Tree | Callable[[Tree], Tree] | None
"""A selection of leaves: bool tree or prefix, callable, or regular expression."""

KeyPath: TypeAlias = jax.tree_util.KeyPath[Any]
"""Where a leaf is in its tree."""

Scalar: TypeAlias = float | jax.typing.ArrayLike
"""A number or a scalar array, which may be traced."""

Sparsity: TypeAlias = Scalar | optax.Schedule
"""The fraction removed: a number, a traced scalar or a schedule of the count."""

Projection: TypeAlias = Callable[[Tree], Tree]
"""A map of a tree of floating arrays onto a set, shapes and dtypes kept."""
