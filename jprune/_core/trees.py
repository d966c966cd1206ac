"""How jprune reads a tree: names of leaves, holes and boxes.

A *hole* is a place without a parameter: ``None`` or ``optax.MaskedNode``. A
*box* is Flax metadata around one array (``nnx.Variable``, Linen's
``Partitioned``); it is seen through.
"""

import re
from collections import Counter
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax import lax

from jprune._core.typing import KeyPath, Tree
from jprune._core.xla import made_once


def is_hole(node: Any) -> bool:
    """True for what stands where a tree has no parameter."""
    return node is None or isinstance(node, optax.MaskedNode)


def is_box(node: Any) -> bool:
    """True for Flax metadata boxes, of Linen or NNX, without importing Flax."""
    # The one protocol that both share is how a lifted axis is announced.
    cls = type(node)
    return hasattr(cls, "add_axis") and hasattr(cls, "remove_axis")


def unbox(tree: Tree) -> Tree:
    """Replaces every box by what it holds."""

    def content(node: Any) -> Any:
        if not is_box(node):
            return node
        (held,) = jax.tree.leaves(node, is_leaf=lambda x: x is not node)
        return unbox(held)

    return jax.tree.map(content, tree, is_leaf=is_box)


def path_name(path: KeyPath) -> str:
    """The path as users write it: ``"Dense_0/kernel"``."""
    return jax.tree_util.keystr(path, simple=True, separator="/") or "(root)"


def unique_names(paths: Sequence[KeyPath]) -> list[str]:
    """The same for many paths, in full where two are written alike.

    ``{"a/b": ..., "a": {"b": ...}}`` has ``"['a']['b']"`` and ``"['a/b']"``.
    """
    names = [path_name(path) for path in paths]
    times = Counter(names)
    return [
        name if times[name] == 1 else jax.tree_util.keystr(path)
        for name, path in zip(names, paths, strict=True)
    ]


def layer_names(structure: jax.tree_util.PyTreeDef) -> tuple[str, ...]:
    """The path of each leaf without numbers: the same for all layers of a kind.

    ``""`` where numbers are all there is, and nothing says what is of a kind.

    >>> layer_names(jax.tree.structure({"w_0": 1, "w_1": 2, "b": [3, 4]}))
    ('b/', 'b/', 'w_', 'w_')
    """
    tree = jax.tree.unflatten(structure, range(structure.num_leaves))
    paths = [path for path, _ in jax.tree_util.tree_flatten_with_path(tree)[0]]
    names = [re.sub(r"\d+", "", path_name(path)) for path in paths]
    return tuple(name if name.strip("/") else "" for name in names)


def leaves_with_path(tree: Tree) -> list[tuple[KeyPath, Any]]:
    """Leaves and holes of ``tree``, seen through boxes, with their paths."""
    return jax.tree_util.tree_flatten_with_path(unbox(tree), is_leaf=is_hole)[0]


def rebuild(params: Tree, leaves: list[Any]) -> Tree:
    """A tree like ``params``, boxes included, from one leaf or hole each."""
    return jax.tree.unflatten(
        jax.tree.structure(params, is_leaf=is_hole), leaves
    )


def map_with_path(
    function: Callable[..., Any], tree: Tree, *rest: Tree
) -> Tree:
    """``jax.tree_util.tree_map_with_path`` that sees through boxes."""
    others = (jax.tree.leaves(other, is_leaf=is_hole) for other in rest)
    found = [
        x if is_hole(x) else function(path, x, *more)
        for (path, x), *more in zip(
            leaves_with_path(tree), *others, strict=True
        )
    ]
    return rebuild(tree, found)


def is_floating(leaf: Any) -> bool:
    """True for real floating arrays of any precision, and Python floats.

    Not for those that have no zero, the scales of 8 bits ``float8_e8m0fnu``.
    """
    if isinstance(leaf, float):
        return True
    dtype = getattr(leaf, "dtype", None)
    if dtype is None or not jnp.issubdtype(dtype, jnp.floating):
        return False
    # float8_e8m0fnu, made for scales, has no 0: a masked weight would be NaN.
    return not np.zeros((), dtype).astype(np.float32)


def is_bool(leaf: Any) -> bool:
    """True for bool arrays and Python's bools."""
    return isinstance(leaf, bool) or getattr(leaf, "dtype", None) == np.bool_


def kept_only(mask: Any, x: Any) -> jax.Array:
    """``x`` where ``mask``, and else 0: a product would leave NaN and inf."""
    return jnp.where(mask, x, jnp.zeros_like(x))


def at_least_float32(x: Any) -> jax.Array:
    """In float32 at least: small types underflow, overflow and round."""
    array = jnp.asarray(x)
    return array.astype(wide_dtype(array.dtype))


def wide_dtype(*dtypes: Any) -> Any:
    """float32, or float64 if any is; no promotion, which 8 bits do not know."""
    wide = any(dtype == np.float64 for dtype in dtypes)
    return np.dtype(np.float64 if wide else np.float32)


def is_nonzero(leaf: Any) -> jax.Array:
    """Where a real floating array is not exactly 0: -0 is 0, NaN is not.

    Read off the bits: backends compare subnormal numbers as if they were 0.
    """
    x = at_least_float32(leaf)
    bits = np.uint64 if x.dtype == np.float64 else np.uint32
    return lax.bitcast_convert_type(x, bits) << np.array(1, bits) != 0


def is_array(leaf: Any) -> bool:
    """True for what can be a parameter at all (not a function, say)."""
    return hasattr(leaf, "dtype") or isinstance(leaf, bool | int | float)


def concatenate_many(numbers: list[jax.Array]) -> jax.Array:
    """Numbers of many leaves, ``[..., n]`` from each, in one array.

    A few at a time, each made once: what compiling one concatenation costs grows
    with the square of its operands, and a reduction of it would become a chain of
    operations that is fused into the work on each leaf.
    """
    few = 32
    while len(numbers) > 1:
        groups = [numbers[i : i + few] for i in range(0, len(numbers), few)]
        numbers = [
            made_once(jnp.concatenate(group, axis=-1)) for group in groups
        ]
    return numbers[0]
