"""How jprune reads a tree: names of leaves, holes, boxes, and alignment.

A *hole* is a place without a parameter: ``None`` or ``optax.MaskedNode``. A
*box* is Flax metadata around one array (``nnx.Variable``, Linen's
``Partitioned``); it is seen through.
"""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax import lax
from jax.tree_util import KeyPath

from jprune._typing import Tree


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


def leaves_with_path(tree: Tree) -> list[tuple[KeyPath, Any]]:
    """Leaves and holes of ``tree``, seen through boxes, with their paths."""
    return jax.tree_util.tree_flatten_with_path(unbox(tree), is_leaf=is_hole)[0]


def rebuild(params: Tree, leaves: list[Any]) -> Tree:
    """A tree like ``params``, boxes included, from one leaf or hole each."""
    return jax.tree.unflatten(
        jax.tree.structure(params, is_leaf=is_hole), leaves
    )


def is_floating(leaf: Any) -> bool:
    """True for real floating arrays of any precision, and Python floats.

    Not for those that have no zero, the scales of 8 bits ``float8_e8m0fnu``.
    """
    if isinstance(leaf, float):
        return True
    dtype = getattr(leaf, "dtype", None)
    if dtype is None or not jnp.issubdtype(dtype, jnp.floating):
        return False
    return float(np.zeros((), dtype)) == 0.0


def wide(x: Any) -> jax.Array:
    """In float32 at least: 16-bit numbers underflow, overflow and round."""
    x = jnp.asarray(x)
    return x.astype(wide_dtype(x.dtype))


def wide_dtype(*dtypes: Any) -> Any:
    """float32, or float64 if any is; no promotion, which 8 bits do not know."""
    wide = any(dtype == np.float64 for dtype in dtypes)
    return np.dtype(np.float64 if wide else np.float32)


def is_array(leaf: Any) -> bool:
    """True for what can be a parameter at all (not a function, say)."""
    return hasattr(leaf, "dtype") or isinstance(leaf, bool | int | float)


def align(tree: Tree, params: Tree, call: str, *, prefix: bool) -> list[Any]:
    """The leaf of ``tree`` that belongs to each leaf or hole of ``params``.

    Trees are matched by path, so ``dict`` and ``FrozenDict``, boxed and plain
    trees go together. What ``tree`` holds at a hole of ``params`` is dropped.

    Args:
      tree: The user's tree: masks, gradients, or a selection.
      params: The parameters.
      call: How the caller is named in errors.
      prefix: Whether one leaf of ``tree`` may stand for a whole branch.

    Returns:
      One entry per leaf or hole of ``params``; ``None`` at holes.

    Raises:
      ValueError: A leaf of either has no partner; its path is named.
    """
    if not jax.tree.leaves(params):
        return [None] * len(leaves_with_path(params))
    given = dict(leaves_with_path(tree))

    def partner(path: KeyPath) -> KeyPath | None:
        for n in range(len(path) + 1):
            start = path[:n]
            if start in given and (
                prefix or n == len(path) or is_hole(given[start])
            ):
                return start
        return None

    matched: set[KeyPath | None] = set()
    holes: set[KeyPath] = set()
    aligned: list[Any] = []
    for path, leaf in leaves_with_path(params):
        at = partner(path)
        matched.add(at)
        if is_hole(leaf):
            holes.add(path)
            aligned.append(None)
        elif at is None:
            raise ValueError(
                f"{call}: the parameters have the leaf {path_name(path)!r}, "
                "the given tree has not."
            )
        else:
            aligned.append(given[at])
    for path, leaf in given.items():
        dropped = any(path[:n] in holes for n in range(len(path) + 1))
        if path not in matched and not dropped and not is_hole(leaf):
            raise ValueError(
                f"{call}: the given tree has the leaf {path_name(path)!r}, "
                "the parameters have not."
            )
    return aligned


def like(params: Tree, tree: Tree, call: str, kind: str) -> Tree:
    """``tree`` in the structure of ``params``, floats in its shapes.

    Args:
      params: The parameters; what ``tree`` holds at their holes is dropped.
      tree: Numbers for every parameter: gradients or scores.
      call: How the caller is named in errors.
      kind: What one leaf of ``tree`` is called in errors.

    Raises:
      ValueError: A leaf is missing, too much, not floating or of another shape.
    """
    aligned = align(tree, params, call, prefix=False)
    leaves = []
    for (path, p), leaf in zip(leaves_with_path(params), aligned, strict=True):
        if is_hole(p):
            leaves.append(p)
            continue
        if not is_floating(leaf) or np.shape(leaf) != np.shape(p):
            found = getattr(leaf, "dtype", type(leaf).__name__)
            raise ValueError(
                f"{call}: the {kind} of {path_name(path)!r} must be floating of "
                f"shape {np.shape(p)}, got {found} of shape {np.shape(leaf)}."
            )
        leaves.append(leaf)
    return rebuild(params, leaves)


def together(numbers: list[jax.Array]) -> jax.Array:
    """Numbers of many leaves, ``[..., n]`` from each, in one array.

    A few at a time, and behind barriers: what compiling one concatenation costs
    grows with the square of its operands, and a reduction of it would become a
    chain of operations that is fused into the work on each leaf.
    """
    few = 32
    while len(numbers) > 1:
        groups = [numbers[i : i + few] for i in range(0, len(numbers), few)]
        numbers = [
            lax.optimization_barrier(jnp.concatenate(group, axis=-1))
            for group in groups
        ]
    return numbers[0]
