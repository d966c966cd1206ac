"""Trees in files: parameters by their paths, the rest as dicts, lists, tuples."""

from collections.abc import Mapping
from typing import Any

import jax
import numpy as np

from jprune._core.describe import describe
from jprune._core.trees import (
    is_hole,
    leaves_with_path,
    path_name,
    rebuild,
    unbox,
    unique_names,
)
from jprune._core.typing import Tree


def flat(params: Tree) -> dict[str, Any]:
    """The leaves of a tree by their paths; holes are left out."""
    leaves = [
        (path, x) for path, x in leaves_with_path(params) if not is_hole(x)
    ]
    names = unique_names([path for path, _ in leaves])
    return dict(zip(names, (x for _, x in leaves), strict=True))


def unflat(params: Mapping[str, Any], like: Tree) -> Tree:
    """Puts loaded parameters into a tree of your own.

    Args:
      params: Arrays by their paths: ``bundle.params``, or what
        :func:`load_sparse` returns.
      like: A tree with these paths, of arrays or shapes: a Linen model's
        variables, an NNX state, an Equinox module.

    Returns:
      A tree like ``like``, with the arrays of ``params``.

    Raises:
      ValueError: A path is missing or unknown, or a shape differs.

    >>> import jax.numpy as jnp, jprune
    >>> like = {"Dense_0": {"kernel": jnp.zeros((1, 2))}}
    >>> jprune.export.unflat({"Dense_0/kernel": jnp.ones((1, 2))}, like)
    {'Dense_0': {'kernel': Array([[1., 1.]], dtype=float32)}}
    """
    call = "`export.unflat(params, like)`"
    names = iter(flat(like))
    rest, found = dict(params), []
    for _, x in leaves_with_path(like):
        if is_hole(x):
            found.append(x)
            continue
        name = next(names)
        if name not in rest:
            raise ValueError(
                f"{call}: `params` has no {name!r}, got {describe(params)}."
            )
        leaf = rest.pop(name)
        if np.shape(leaf) != np.shape(x):
            raise ValueError(
                f"{call}: {name!r} has shape {np.shape(leaf)}, in `like` "
                f"{np.shape(x)}."
            )
        found.append(leaf)
    if rest:
        raise ValueError(f"{call}: `like` has no {next(iter(rest))!r}.")
    return rebuild(like, found)


def plain(tree: Tree) -> Tree:
    """The tree of dicts with string keys, lists and tuples.

    Boxes are taken off. A NamedTuple is a tuple; what has named fields, a dataclass
    or a module, is a dict.
    """
    return _plain(unbox(tree))


def _plain(node: Any) -> Any:
    if node is None or jax.tree_util.all_leaves([node]):
        return node
    paths, _ = jax.tree_util.tree_flatten_with_path(
        node, is_leaf=lambda x: x is not node
    )
    children = [_plain(child) for _, child in paths]
    if type(node) is list:
        return children
    keys = [path[0] for path, _ in paths]
    numbered = all(
        isinstance(
            key,
            jax.tree_util.SequenceKey | jax.tree_util.FlattenedIndexKey,
        )
        for key in keys
    )
    is_dict = isinstance(node, Mapping)
    if isinstance(node, tuple) or (numbered and not is_dict):
        return tuple(children)
    names = [path_name((key,)) for key in keys]
    if len({*names}) < len(names):
        raise ValueError(
            f"`export.save`: the keys {', '.join(names)} of {describe(node)} are "
            "not all written differently; a file has names for keys."
        )
    return dict(zip(names, children, strict=True))
