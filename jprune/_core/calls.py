"""The call that made a member or a transform: how it prints and pickles.

A factory returns functions that live inside of it, which print as addresses and
which pickle refuses. :func:`recorded` gives each of them the call that made it:
it prints as that call, and unpickling repeats the call.
"""

import functools
import reprlib
from collections import Counter
from collections.abc import Callable
from typing import Any, ParamSpec, TypeVar

import jax
import numpy as np

_P = ParamSpec("_P")
_R = TypeVar("_R")


class Call:
    """A factory, and the arguments that it was called with."""

    def __init__(self, factory: Any, args: Any, kwargs: Any) -> None:
        self.factory, self.args, self.kwargs = factory, args, kwargs
        self.data: dict[str, Any] = {}  # fields of the result: no functions

    def __repr__(self) -> str:
        given = [short(x) for x in self.args]
        given += [f"{name}={short(x)}" for name, x in self.kwargs.items()]
        name = self.factory.__name__.lstrip("_")
        return f"{name}({', '.join(given)})"

    def __reduce__(self) -> Any:
        # It unpickles as what the call returns: once for all of its parts.
        return _repeat, (self.factory, self.args, self.kwargs)


class Part:
    """A function that a factory made: a field of its result, or all of it."""

    def __init__(self, call: Call, field: str | None, fn: Any) -> None:
        functools.update_wrapper(self, fn)
        self.call, self.field, self._fn = call, field, fn

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        return self._fn(*args, **kwargs)

    def __repr__(self) -> str:
        return f"{self.call}" + (f".{self.field}" if self.field else "")

    def __reduce__(self) -> Any:
        return _part, (self.call, self.field)

    def __copy__(self) -> "Part":
        return self  # as copies of functions are

    def __deepcopy__(self, memo: Any) -> "Part":
        del memo  # nothing in it changes
        return self


def _repeat(factory: Any, args: Any, kwargs: Any) -> Any:
    return factory(*args, **kwargs)


def _part(made: Any, field: str | None) -> Any:
    return made if field is None else getattr(made, field)


def recorded(factory: Callable[_P, _R]) -> Callable[_P, _R]:
    """A factory whose results know the call that made them.

    Args:
      factory: A function of a module that returns a function, or a
        ``NamedTuple`` in which some fields are functions.

    Returns:
      The same factory, with the same signature. Arguments are held as long as
      the functions are; to be pickled they must be picklable themselves.
    """

    @functools.wraps(factory)
    def made(*args: _P.args, **kwargs: _P.kwargs) -> _R:
        call = Call(made, args, kwargs)
        result: Any = factory(*args, **kwargs)
        if not hasattr(result, "_fields"):
            return Part(call, None, _inner(result))  # type: ignore[return-value]
        fields = result._asdict()
        parts = {
            name: Part(call, name, _inner(x))
            for name, x in fields.items()
            if callable(x)
        }
        call.data = {n: x for n, x in fields.items() if n not in parts}
        known: _R = result._replace(**parts)
        return known

    return made


def _inner(fn: Any) -> Any:
    """The function itself, where another factory recorded it."""
    return fn._fn if isinstance(fn, Part) else fn


def is_recorded(x: Any) -> bool:
    """Whether it is what a recorded factory returned, or one of its functions."""
    fields = x if hasattr(x, "_fields") else (x,)
    return any(isinstance(field, Part) for field in fields)


def show(member: Any) -> str:
    """A ``NamedTuple`` as the call that made it, and what was replaced since."""
    fields = member._asdict()
    calls = Counter(x.call for x in fields.values() if isinstance(x, Part))
    if not calls:
        given = (f"{name}={short(x)}" for name, x in fields.items())
        return f"{type(member).__name__}({', '.join(given)})"
    call = calls.most_common(1)[0][0]

    def as_made(name: str, x: Any) -> bool:
        if isinstance(x, Part):
            return x.call is call and x.field == name
        if name not in call.data:
            return False
        made = call.data[name]
        if is_recorded(x):  # functions, the same if they print as the same call
            return f"{x}" == f"{made}"
        return np.array_equal(x, made)

    replaced = [
        f"{name}={short(x)}"
        for name, x in fields.items()
        if not as_made(name, x)
    ]
    return f"{call}._replace({', '.join(replaced)})" if replaced else f"{call}"


class _Short(reprlib.Repr):
    """Arguments in a few words: arrays as dtype and shape, functions as names."""

    def repr1(self, x: Any, level: int) -> str:
        if isinstance(x, Part):
            return repr(x)
        if isinstance(x, np.generic):
            return str(x)
        if hasattr(x, "shape") and hasattr(x, "dtype"):
            return f"{x.dtype}{list(x.shape)}"
        if is_recorded(x):
            return show(x)
        if callable(x) and hasattr(x, "__name__"):
            return str(x.__name__)
        if type(x) in (dict, list, tuple, set, frozenset, type(None)):
            return super().repr1(x, level)
        if jax.tree_util.all_leaves([x]) or x == ():
            return super().repr1(x, level)
        return f"{type(x).__name__}(...)"


_short = _Short()
_short.maxlevel = 3
_short.maxstring = _short.maxother = 80


def short(x: Any) -> str:
    """An argument as it is shown in a call."""
    return _short.repr(x)
