"""Random keys in all the forms that users have."""

import operator
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jprune._core.checks import is_traced
from jprune._core.varying import computed_now


def key_maker(call: str, key: Any) -> Callable[[], jax.Array]:
    """A function that makes a typed key where it is used.

    ``update`` must read no array made here: it could be donated, or be bound to
    another device.

    Args:
      call: How the caller is named in errors.
      key: A seed (an int, or an integer scalar of NumPy or JAX), a typed key, or
        the uint32 array of ``jax.random.PRNGKey``. It may be traced.

    Raises:
      ValueError: ``key`` is none of these.
    """
    dtype, shape = getattr(key, "dtype", None), np.shape(key)
    if dtype is None or isinstance(key, np.generic):
        seed = _seed(call, key)
        return lambda: jax.random.key(seed)
    if jnp.issubdtype(dtype, jax.dtypes.prng_key):
        if shape:
            raise _refused(call, f"an array of keys of shape {shape}")
        return _typed(key)
    if not jnp.issubdtype(dtype, np.integer):
        raise _refused(call, f"an array of {dtype}")
    if not shape:
        if is_traced(key):
            return lambda: jax.random.key(key)
        seed = _seed(call, np.asarray(key).item())
        return lambda: jax.random.key(seed)
    try:
        key = jax.random.wrap_key_data(jnp.asarray(key))
    except TypeError:
        raise _refused(call, f"an array of {dtype} of shape {shape}") from None
    return key_maker(call, key)


def _seed(call: str, number: Any) -> int:
    """A seed as a Python int, of which ``jax.random.key`` takes 63 bits."""
    try:
        seed = operator.index(number)
    except TypeError:
        raise _refused(call, repr(number)) from None
    if isinstance(number, bool | np.bool_) or not -(2**63) <= seed < 2**63:
        raise _refused(call, repr(number))
    return seed


def _typed(key: jax.Array) -> Callable[[], jax.Array]:
    if is_traced(key):
        return lambda: key
    with computed_now():
        data = np.asarray(jax.random.key_data(key))
    impl = jax.random.key_impl(key)
    return lambda: jax.random.wrap_key_data(jnp.asarray(data), impl=impl)


def _refused(call: str, got: str) -> ValueError:
    return ValueError(
        f"`{call}(key=...)` must be a seed or one random key, an int or "
        f"`jax.random.key(0)`, got {got}."
    )
