"""Arrays as safetensors: every dtype of JAX, bit for bit.

A safetensors file holds the types that every reader of such files knows. Others are
stored as bytes (8-bit and smaller floats, small integers), as pairs of floats
(complex numbers) or as integers (random keys), and a note says what they are.
"""

import json
from collections.abc import Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jprune.export.extras import needed

MOST = 100_000_000  # bytes of a header; safetensors has the same limit
PLAIN = {
    "BOOL": np.dtype(bool),
    **{f"U{n}": np.dtype(f"uint{n}") for n in (8, 16, 32, 64)},
    **{f"I{n}": np.dtype(f"int{n}") for n in (8, 16, 32, 64)},
    **{f"F{n}": np.dtype(f"float{n}") for n in (16, 32, 64)},
    "BF16": jnp.dtype(jnp.bfloat16),
}
PAIRS = {"complex64": np.float32, "complex128": np.float64}
BYTES = tuple(
    name
    for name in dir(jnp)
    if name.startswith(("int", "uint", "float"))
    and isinstance(getattr(jnp, name), type(jnp.bfloat16))
    and np.dtype(getattr(jnp, name)).itemsize == 1
    and np.dtype(getattr(jnp, name)) not in PLAIN.values()
)
KEY = "key:"

Arrays = dict[str, np.ndarray]


class Contents(NamedTuple):
    """What a file holds: arrays as they are stored, and its notes."""

    arrays: Arrays
    notes: dict[str, str]


def stored(x: Any) -> tuple[np.ndarray, str]:
    """An array in a type that every reader knows, and the name of its own."""
    if hasattr(x, "dtype") and jnp.issubdtype(x.dtype, jax.dtypes.prng_key):
        data = np.asarray(jax.random.key_data(x))
        return data, f"{KEY}{jax.random.key_impl(x)}"
    x = x if hasattr(x, "dtype") else jnp.asarray(x)  # a number of Python's
    array = np.asarray(x, order="C")
    name = array.dtype.name
    if array.dtype in PLAIN.values():
        return array, name
    if name in PAIRS:
        pairs = array.reshape(*array.shape, 1).view(PAIRS[name])
        return pairs, name
    return array.view(np.uint8), name


def restored(place: str, array: np.ndarray, name: str) -> Any:
    """The array that :func:`stored` was given, a random key or NumPy's.

    Raises:
      ValueError: The array is not one of that type.
    """
    held = str(array.dtype)
    if name == held:
        return array
    if name in PAIRS and held == np.dtype(PAIRS[name]).name:
        if array.shape[-1:] == (2,):
            return array.view(name)[..., 0]
    elif name in BYTES and held == "uint8":
        return array.view(np.dtype(getattr(jnp, name)))
    elif name.startswith(KEY) and held == "uint32":
        try:
            return jax.random.wrap_key_data(
                jnp.asarray(array), impl=name[len(KEY) :]
            )
        except (ValueError, TypeError) as error:
            raise ValueError(f"{place} is no random key: {error}") from None
    raise ValueError(
        f"{place} must hold {name!r}, got {held} of shape {array.shape}."
    )


def to_bytes(call: str, arrays: Mapping[str, Any], **notes: str) -> bytes:
    """Arrays, of types that every reader knows, as a safetensors file."""
    library = needed(call, "safetensors.numpy")
    held = {name: np.asarray(x, order="C") for name, x in arrays.items()}
    return bytes(library.save(held, notes or None))


def from_bytes(call: str, place: str, data: bytes) -> Contents:
    """The arrays of a safetensors file, copied out of it.

    Raises:
      ValueError: It is none, or holds a type that no writer here uses.
    """
    library = needed(call, "safetensors")
    length = int.from_bytes(data[:8], "little")
    if len(data) < 8 or length > min(MOST, len(data) - 8):
        raise ValueError(
            f"{place}: a header of {length:,} bytes in a file of "
            f"{len(data):,}; it is cut off, or no safetensors file."
        )
    try:
        found = library.deserialize(data)
        notes = json.loads(data[8 : 8 + length]).get("__metadata__") or {}
    except (library.SafetensorError, ValueError, RecursionError) as error:
        raise ValueError(f"{place}: no safetensors file: {error}.") from None
    return Contents(
        {name: _array(f"{place}, {name!r},", x) for name, x in found}, notes
    )


def _array(place: str, entry: Mapping[str, Any]) -> np.ndarray:
    dtype = PLAIN.get(entry["dtype"])
    if dtype is None:
        raise ValueError(
            f"{place} has the type {entry['dtype']!r}; written are "
            f"{', '.join(PLAIN)}."
        )
    array = np.frombuffer(entry["data"], np.uint8)
    if dtype.kind == "b" and array.max(initial=0) > 1:
        raise ValueError(f"{place} holds bools that are neither 0 nor 1.")
    found: np.ndarray = array.view(dtype).reshape(entry["shape"])
    return found
