"""Old names of functions: they work for one more minor version, and warn."""

import functools
import warnings
from collections.abc import Callable
from typing import ParamSpec, TypeVar

_P = ParamSpec("_P")
_R = TypeVar("_R")


def renamed(
    old: str, new: Callable[_P, _R], since: tuple[int, int]
) -> Callable[_P, _R]:
    """``new`` under its ``old`` name; ``since`` is the version that renamed it.

    >>> import warnings
    >>> prune_mask = renamed("prune_mask", len, (0, 2))
    >>> with warnings.catch_warnings(record=True) as seen:
    ...     warnings.simplefilter("always")
    ...     prune_mask([1, 2])
    2
    >>> print(seen[0].message)
    `prune_mask` is called `len` since jprune 0.2, and goes in 0.3.
    """
    major, minor = since

    @functools.wraps(new)
    def call(*args: _P.args, **kwargs: _P.kwargs) -> _R:
        warnings.warn(
            f"`{old}` is called `{new.__name__}` since jprune {major}.{minor}, "
            f"and goes in {major}.{minor + 1}.",
            DeprecationWarning,
            stacklevel=2,
        )
        return new(*args, **kwargs)

    call.__name__ = call.__qualname__ = old
    return call
