"""A program's parameters as it sees them."""

from typing import Any, NamedTuple

import jax
import numpy as np

from jprune._core.trees import (
    is_floating,
    is_hole,
    leaves_with_path,
    unique_names,
)
from jprune._core.typing import Tree
from jprune.jaxprs.versions import abstract_array


class Leaf(NamedTuple):
    """A parameter as the program sees it."""

    path: str
    shape: tuple[int, ...]
    dtype: Any
    floating: bool


def leaves_of(params: Tree) -> list[Leaf]:
    """Every array of ``params``, holes left out."""
    leaves = leaves_with_path(params)
    names = unique_names([path for path, _ in leaves])
    return [
        Leaf(name, np.shape(x), _dtype(x), is_floating(x))
        for name, (_, x) in zip(names, leaves, strict=True)
        if not is_hole(x)
    ]


def _dtype(leaf: Any) -> Any:
    return leaf.dtype if hasattr(leaf, "dtype") else np.asarray(leaf).dtype


def abstract(tree: Tree) -> Tree:
    """Shapes and dtypes in place of arrays."""
    return jax.tree.map(
        lambda x: abstract_array(x) if hasattr(x, "dtype") else x, tree
    )
