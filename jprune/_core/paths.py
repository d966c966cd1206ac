"""Which leaf of one tree belongs to which of another, by their paths."""

from typing import Any, TypeAlias

import jax
import numpy as np

from jprune._core.trees import (
    is_floating,
    is_hole,
    leaves_with_path,
    path_name,
    rebuild,
)
from jprune._core.typing import KeyPath, Tree

Key: TypeAlias = tuple[Any, ...]
"""What stands for a path where leaves are matched."""

_Leaves: TypeAlias = dict[Key, tuple[KeyPath, Any]]


def _keyed(*trees: Tree) -> list[_Leaves]:
    """Leaves and holes of some trees, with their paths, by the keys of these.

    A key holds the names along a path, each for itself, so that a dict, a
    ``FrozenDict`` and a dataclass match each other, and ``"a/b"`` is not ``"a"``,
    ``"b"``. Where that is not enough to tell leaves apart it is the path.
    """
    flat = [leaves_with_path(tree) for tree in trees]
    named = [
        {tuple(path_name((key,)) for key in path): (path, x) for path, x in one}
        for one in flat
    ]
    if any(len(a) != len(b) for a, b in zip(named, flat, strict=True)):
        return [{path: (path, x) for path, x in one} for one in flat]
    return named


def align(tree: Tree, params: Tree, call: str, *, prefix: bool) -> list[Any]:
    """The leaf of ``tree`` that belongs to each leaf or hole of ``params``.

    What ``tree`` holds at a hole of ``params`` is dropped.

    Args:
      tree: The user's tree: gradients, or a selection.
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
    given, own = _keyed(tree, params)

    def partner(key: Key) -> Key | None:
        for n in range(len(key) + 1):
            start = key[:n]
            if start in given and (
                prefix or n == len(key) or is_hole(given[start][1])
            ):
                return start
        return None

    matched: set[Key | None] = set()
    aligned: list[Any] = []
    for key, (path, leaf) in own.items():
        at = partner(key)
        matched.add(at)
        if is_hole(leaf):
            aligned.append(None)
        elif at is None:
            raise ValueError(
                f"{call}: the parameters have the leaf {path_name(path)!r}, "
                "the given tree has not."
            )
        else:
            aligned.append(given[at][1])
    holes = _holes(own)
    for key, (path, leaf) in given.items():
        if key not in matched and not is_hole(leaf) and not _in(key, holes):
            raise ValueError(
                f"{call}: the given tree has the leaf {path_name(path)!r}, "
                "the parameters have not."
            )
    return aligned


def align_part(tree: Tree, params: Tree, call: str) -> list[Any]:
    """The same for a tree of masks, which may cover a part of ``params``.

    It mirrors ``params`` or one branch of it, ``variables["params"]`` say, and
    may leave out leaves, which are then as good as holes.

    Raises:
      ValueError: A mask fits no parameter, or the masks fit several branches.
    """
    if not jax.tree.leaves(params):
        return [None] * len(leaves_with_path(params))
    given, own = _keyed(tree, params)
    masks = {key: x for key, (_, x) in given.items() if not is_hole(x)}
    branches = _branches(list(masks), own)
    if len(branches) != 1:
        raise ValueError(f"{call}: {_misfit(list(masks), given, own)}.")
    (branch,) = branches
    placed = {branch + key: mask for key, mask in masks.items()}
    return [
        None if is_hole(leaf) else placed.get(key)
        for key, (_, leaf) in own.items()
    ]


def _misfit(masks: list[Key], given: _Leaves, own: _Leaves) -> str:
    """Why some masks are not those of one branch of the parameters."""
    ends = {key: _ends(key, own) for key in masks}
    for key, found in ends.items():
        if not found:
            return f"the mask {path_name(given[key][0])!r} fits no parameter"
    paths = [path for found in ends.values() for path in found.values()]
    names = sorted({repr(path_name(path)) for path in paths})
    return (
        "the masks fit several branches of the parameters, "
        f"{' and '.join(names[:2])}; give them with their whole paths"
    )


def _branches(masks: list[Key], own: _Leaves) -> dict[Key, KeyPath]:
    """The branches of the parameters that have all of some masks.

    The whole tree, if it does, goes before its branches.
    """
    holes = _holes(own)

    def has_all(branch: Key) -> bool:
        whole = [branch + key for key in masks]
        return all(key in own or _in(key, holes) for key in whole)

    if has_all(()):
        return {(): ()}
    ends = (_ends(key, own) for key in masks)
    starts = next((found for found in ends if found), {})
    return {key: path for key, path in starts.items() if has_all(key)}


def _ends(end: Key, own: _Leaves) -> dict[Key, KeyPath]:
    """The branches in which there is a leaf with this end of a path."""
    return {
        key[: -len(end)]: path[: -len(end)]
        for key, (path, leaf) in own.items()
        if end and key[-len(end) :] == end and not is_hole(leaf)
    }


def _holes(own: _Leaves) -> set[Key]:
    return {key for key, (_, leaf) in own.items() if is_hole(leaf)}


def _in(key: Key, holes: set[Key]) -> bool:
    """Whether a place is a hole of the parameters, or inside of one."""
    return any(key[:n] in holes for n in range(len(key) + 1))


def matched_to(params: Tree, tree: Tree, call: str, kind: str) -> Tree:
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
