"""``where``: which leaves are meant."""

import functools
import re
from collections.abc import Callable
from typing import Any, NamedTuple, TypeAlias

import jax
import numpy as np
import optax

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
from jprune._core.typing import KeyPath, Tree, Where

_NEVER_PRUNED = ("bias", "scale", "mean", "var")

_WORDS = {
    *("norm", "layernorm", "batchnorm", "rmsnorm", "groupnorm"),
    *("emb", "embed", "embedding", "pos", "position", "positional"),
}

_SHOWN = 8  # leaves that an error lists

Why: TypeAlias = Callable[[KeyPath, Any, set[str]], str | None]
"""Of a leaf, beside the names of all, why it is not meant; None: it is."""


class Meant(NamedTuple):
    """Which leaves something is for."""

    default: Why  # where nothing is said
    named: Why  # where an expression is found in a path, and is not all of it


def _not_floating(leaf: Any) -> str | None:
    return None if is_floating(leaf) else f"is {_dtype(leaf)}, not floating"


def _no_kernel(path: KeyPath, leaf: Any, names: set[str]) -> str | None:
    """Why a leaf is no floating array of two axes, or is a bias."""
    own, whole = path_name(path[-1:]), path_name(path)
    if np.ndim(leaf) < 2 and is_floating(leaf):
        return "has fewer than two axes"
    if own == "b" and f"{whole[:-1]}w" in names:
        return "is called 'b', beside a 'w'"
    return "is called 'bias'" if own == "bias" else _not_floating(leaf)


def _not_pruned(path: KeyPath, leaf: Any, names: set[str]) -> str | None:
    """Why a leaf is not pruned by default; None for kernels, which are."""
    why = _no_kernel(path, leaf, names)
    if why is not None:
        return why
    own, parent = path_name(path[-1:]), path[-2:-1]
    if own in _NEVER_PRUNED:
        return f"is called {own!r}"
    for name in (own, *map(path_name, [parent] if parent else [])):
        # "RMSNorm_0" has the words rms and norm.
        words = re.findall("[A-Z]+(?![a-z])|[A-Z]?[a-z]+", name)
        found = _WORDS.intersection(map(_singular, words))
        if found:
            return f"has {min(found)!r} in {name!r}"
    return None


def _singular(word: str) -> str:
    word = word.lower()
    return word if word in _WORDS else word.removesuffix("s")


def _not_projected(path: KeyPath, leaf: Any, names: set[str]) -> str | None:
    """Why a leaf is not projected; None for all that floats."""
    del path, names  # the formulas make no difference between W and b
    return _not_floating(leaf)


PRUNED = Meant(_not_pruned, _no_kernel)
PROJECTED = Meant(_not_projected, _not_projected)


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


def select(call: str, where: Where, params: Tree, meant: Meant) -> list[bool]:
    """Which leaves are meant, one bool per leaf or hole of ``params``.

    Args:
      call: How the caller is named in errors.
      where: The selection: a bool tree or prefix, a callable, or a regex.
      params: The parameters.
      meant: Which leaves the caller is for.

    Raises:
      ValueError: Nothing is selected, or something that is not real floating.
    """
    leaves = leaves_with_path(params)
    if not jax.tree.leaves(params):
        return [False] * len(leaves)
    call = f"`{call}(where=...)`"
    reasons: list[str | None] = [None] * len(leaves)
    if where is None:
        reasons = _reasons(leaves, meant.default)
        chosen = [why is None for why in reasons]
    elif isinstance(where, str):
        chosen, reasons = _found(where, leaves, meant.named)
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
            f"are: {_listed(leaves, reasons)}."
        )
    return selected


def by_default(leaves: list[tuple[KeyPath, Any]], meant: Meant) -> list[bool]:
    """Which leaves are meant where nothing is said."""
    return [why is None for why in _reasons(leaves, meant.default)]


def _reasons(leaves: list[tuple[KeyPath, Any]], why: Why) -> list[str | None]:
    names = {path_name(path) for path, _ in leaves}
    return [why(path, leaf, names) for path, leaf in leaves]


def _found(
    where: str, leaves: list[tuple[KeyPath, Any]], why: Why
) -> tuple[list[bool], list[str | None]]:
    """What an expression chooses, and why not what it is found in."""
    chosen, reasons = [], []
    for (path, leaf), reason in zip(leaves, _reasons(leaves, why), strict=True):
        name = path_name(path)
        found = re.search(where, name) is not None
        if re.fullmatch(where, name):
            reason = _not_floating(leaf)
        elif reason is not None:
            reason = f"{reason} (its whole path would choose it)"
        chosen.append(found and reason is None)
        reasons.append(reason if found else None)
    if not any(chosen):  # what is no weight at all is refused as such
        chosen = [
            why is not None and _not_floating(leaf) is not None
            for why, (_, leaf) in zip(reasons, leaves, strict=True)
        ]
    return chosen, reasons


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
    leaves: list[tuple[KeyPath, Any]], reasons: list[str | None]
) -> str:
    """The names of the first leaves, and why they are not meant."""
    names = [
        f"{path_name(path)!r} {why}" if why else path_name(path)
        for (path, leaf), why in zip(leaves, reasons, strict=True)
        if not is_hole(leaf)
    ]
    more = ["..."] if len(names) > _SHOWN else []
    return ", ".join(names[:_SHOWN] + more)


def choose(call: str, where: Where, params: Tree, meant: Meant) -> Tree:
    """``params`` with ``MaskedNode`` in place of what is not selected."""
    selected = select(call, where, params, meant)
    leaves = [
        leaf if pick or leaf is None else optax.MaskedNode()
        for (_, leaf), pick in zip(
            leaves_with_path(params), selected, strict=True
        )
    ]
    return rebuild(params, leaves)
