"""Which parameter a leaf of another tree belongs to, by the end of its path."""

from collections.abc import Iterable
from typing import Any

from jax.tree_util import KeyPath

from jprune._trees import path_name

Names = tuple[str, ...]


def names_of(path: KeyPath | str) -> Names:
    """The parts of a path; none for a tree that is one array."""
    name = path if isinstance(path, str) else path_name(path)
    return () if name == "(root)" else tuple(name.split("/"))


def partner(path: KeyPath | str, names: dict[Names, Any]) -> Any:
    """What ``names`` has for the longest end of ``path``, or None."""
    parts = names_of(path)
    for n in range(len(parts) + 1):
        if parts[n:] in names:
            return names[parts[n:]]
    return None


def ends(paths: Iterable[str]) -> dict[Names, int]:
    """Paths by number, also without their first part where that is no other.

    So ``Dense_0/kernel`` is found in ``params/Dense_0/kernel``.
    """
    full = {names_of(path): i for i, path in enumerate(paths)}
    short: dict[Names, list[int]] = {}
    for names, i in full.items():
        if len(names) > 1:
            short.setdefault(names[1:], []).append(i)
    return {k: v[0] for k, v in short.items() if len(v) == 1} | full
