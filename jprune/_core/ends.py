"""Which parameter a leaf of another tree belongs to, by the end of its path."""

from collections.abc import Iterable
from typing import TypeVar

from jax.tree_util import keystr

from jprune._core.trees import path_name
from jprune._core.typing import KeyPath

_T = TypeVar("_T")


def partner(path: KeyPath, names: dict[str, _T]) -> _T | None:
    """What ``names`` has for the longest end of ``path``, or None."""
    for n in range(len(path) + 1):
        for name in (keystr(path[n:]), path_name(path[n:])):
            if name in names:
                return names[name]
    return None


def ends(names: Iterable[str]) -> dict[str, int]:
    """Leaves by their names, and without the first part where that is no other.

    Names are those of :func:`~jprune._core.trees.unique_names`. So ``Dense_0/kernel`` is found in ``params/Dense_0/kernel``.
    """
    full = {name: i for i, name in enumerate(names)}
    short: dict[str, list[int]] = {}
    for name, i in full.items():
        _, slash, rest = name.partition("/")
        if slash:
            short.setdefault(rest, []).append(i)
    return {k: v[0] for k, v in short.items() if len(v) == 1} | full
