"""Any value in a few words, for errors: what it is, never what an array holds."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jprune._core.calls import is_recorded, short
from jprune._core.trees import is_hole, leaves_with_path, unique_names

_LONGEST = 80  # characters of what is written out
_PLAIN = (bool, int, float, complex, str, bytes, type(None))
_WRITTEN = (*_PLAIN, dict, list, tuple)


def describe(value: Any) -> str:
    """A number, a word or a few of them as they are, else a type.

    >>> import jprune, numpy as np
    >>> describe({"a": np.ones((3, 4)), "b": {"c": np.ones(2)}})
    "a `dict` with the leaves 'a', 'b/c'"
    >>> describe(np.ones((3, 4))), describe(.5), describe(jprune.criteria.fisher())
    ('float64 of shape (3, 4)', '0.5', '`fisher()`')
    """
    if isinstance(value, np.ndarray | np.generic | jax.Array):
        return _array(value)
    if is_recorded(value):
        return f"`{short(value)}`"
    if callable(value) and hasattr(value, "__qualname__"):
        kind = "class" if isinstance(value, type) else "function"
        return f"<{kind} {value.__qualname__}>"
    leaves = [
        (path, x) for path, x in leaves_with_path(value) if not is_hole(x)
    ]
    if type(value) in _WRITTEN and all(type(x) in _PLAIN for _, x in leaves):
        text = repr(value)
        return text if len(text) <= _LONGEST else text[: _LONGEST - 3] + "..."
    name = type(value).__name__
    article = "an" if name[:1] in "AEIOUaeiou" else "a"
    if not any(hasattr(x, "dtype") for _, x in leaves):
        return f"{article} `{name}`"
    names = list(map(repr, unique_names([path for path, _ in leaves])))
    more = f" and {len(names) - 3} more" if len(names) > 3 else ""
    return f"{article} `{name}` with the leaves {', '.join(names[:3])}{more}"


def _array(value: Any) -> str:
    if isinstance(value, jax.core.Tracer):
        return f"traced {value.dtype} of shape {value.shape}"
    if value.ndim or jnp.issubdtype(value.dtype, jax.dtypes.extended):
        return f"{value.dtype} of shape {value.shape}"
    return str(value)
