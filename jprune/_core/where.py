"""``where``: which leaves are meant."""

import functools
import re
from collections.abc import Callable
from typing import Any

import jax
import numpy as np
import optax
from jax.tree_util import KeyPath

from jprune._core.checks import check_floating, is_traced
from jprune._core.describe import describe
from jprune._core.paths import align
from jprune._core.trees import (
    is_array,
    is_bool,
    is_floating,
    is_hole,
    leaves_with_path,
    path_name,
    rebuild,
)
from jprune._core.typing import Tree, Where

_NEVER_PRUNED = ("bias", "scale", "mean", "var")

_SHOWN = 8  # leaves that an error lists


def not_pruned(path: KeyPath, leaf: Any) -> str | None:
    """Why a leaf is not pruned by default; None for kernels, which are."""
    own = path_name(path[-1:])
    if not is_floating(leaf):
        return f"is {_dtype(leaf)}, not floating"
    if np.ndim(leaf) < 2:
        return "has fewer than two axes"
    if own in _NEVER_PRUNED or "embed" in own.lower():
        return f"is called {own!r}"
    return None


def not_projected(path: KeyPath, leaf: Any) -> str | None:
    """Why a leaf is not projected by default; None for all that floats."""
    del path  # the formulas make no difference between W and b
    return None if is_floating(leaf) else f"is {_dtype(leaf)}, not floating"


def _dtype(leaf: Any) -> Any:
    return getattr(leaf, "dtype", type(leaf).__name__)


def check_where(call: str, where: Where) -> None:
    """Refuses what can be seen to select nothing without any parameters."""
    call = f"`{call}(where=...)`"
    if isinstance(where, list | tuple | set | frozenset):
        words = [word for word in where if isinstance(word, str)]
        if words and len(words) == len(where):
            raise ValueError(
                f"{call} got several names; write one regular expression: "
                f"`where={'|'.join(words)!r}`."
            )
    if isinstance(where, re.Pattern):
        raise ValueError(
            f"{call} got a compiled pattern; write `where={where.pattern!r}`."
        )
    if isinstance(where, str):
        try:
            re.compile(where)
        except re.error as error:
            raise ValueError(
                f"{call}: the regular expression {where!r} does not compile: "
                f"{error}."
            ) from None


def select(
    call: str,
    where: Where,
    params: Tree,
    default: Callable[[KeyPath, Any], str | None],
) -> list[bool]:
    """Which leaves are meant, one bool per leaf or hole of ``params``.

    Args:
      call: How the caller is named in errors.
      where: The selection: a bool tree or prefix, a callable, or a regex.
      params: The parameters.
      default: Why a leaf is not meant, or None, where ``where`` is ``None``.

    Raises:
      ValueError: Nothing is selected, or something that is not real floating.
    """
    leaves = leaves_with_path(params)
    if not jax.tree.leaves(params):
        return [False] * len(leaves)
    call = f"`{call}(where=...)`"
    if where is None:
        chosen = [default(path, leaf) is None for path, leaf in leaves]
    elif isinstance(where, str):
        chosen = [bool(re.search(where, path_name(p))) for p, _ in leaves]
    else:
        chosen = _bools(call, where, params)
    selected = []
    for (path, leaf), choice in zip(leaves, chosen, strict=True):
        if choice and is_array(leaf):
            check_floating(call, path, leaf)
        selected.append(choice and is_array(leaf))
    if not any(selected):
        raise ValueError(
            f"{call} selects no parameter, got {describe(where)}; the leaves "
            f"are: {_listed(leaves, default if where is None else None)}."
        )
    return selected


def _bools(call: str, where: Any, params: Tree) -> list[bool]:
    """What a tree of bools says of each leaf, or a function that makes one."""
    tree = _called(call, where, params) if _is_function(where) else where
    for path, choice in leaves_with_path(tree):
        if not is_hole(choice) and not _is_bool(choice):
            raise ValueError(
                f"{call}: the leaf {path_name(path)!r} must be True or False, "
                f"got {describe(choice)}."
            )
    return list(map(bool, align(tree, params, call, prefix=True)))


def _is_function(where: Any) -> bool:
    """Whether it is to be called: a module of bools is a tree that can be."""
    a_leaf = jax.tree_util.all_leaves([where])
    return callable(where) and (a_leaf or isinstance(where, functools.partial))


def _called(call: str, where: Callable[[Tree], Tree], params: Tree) -> Tree:
    try:
        return where(params)
    except ValueError:
        raise  # it says what is wrong
    except Exception as error:
        raise ValueError(
            f"{call}: {describe(where)} is called once, with the whole tree of "
            f"parameters, and fails: {type(error).__name__}: {error}. A rule "
            "for leaves is `lambda params: jax.tree.map(lambda leaf: ..., "
            "params)`."
        ) from error


def _is_bool(choice: Any) -> bool:
    return is_bool(choice) and not is_traced(choice) and np.ndim(choice) == 0


def _listed(
    leaves: list[tuple[KeyPath, Any]],
    why: Callable[[KeyPath, Any], str | None] | None,
) -> str:
    """The names of the first leaves, and why they are not meant."""
    arrays = [(path, leaf) for path, leaf in leaves if not is_hole(leaf)]
    names = [
        f"{path_name(path)!r} {why(path, leaf)}" if why else path_name(path)
        for path, leaf in arrays[:_SHOWN]
    ]
    more = ["..."] if len(arrays) > _SHOWN else []
    return ", ".join(names + more)


def choose(
    call: str,
    where: Where,
    params: Tree,
    default: Callable[[KeyPath, Any], str | None],
) -> Tree:
    """``params`` with ``MaskedNode`` in place of what is not selected."""
    selected = select(call, where, params, default)
    leaves = [
        leaf if pick or leaf is None else optax.MaskedNode()
        for (_, leaf), pick in zip(
            leaves_with_path(params), selected, strict=True
        )
    ]
    return rebuild(params, leaves)
