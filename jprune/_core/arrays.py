"""Arrays without values."""

from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np


def abstract_array(x: Any, shape: Sequence[int] | None = None) -> Any:
    """An array without values, of the type that it has in a program.

    NumPy's float64 is float32 there while x64 is off; an abstract array of float64
    warns then in JAX 0.12.

    >>> import numpy as np
    >>> abstract_array(np.ones((2, 3)))
    ShapeDtypeStruct(shape=(2, 3), dtype=float32)
    """
    dtype = jax.dtypes.canonicalize_dtype(
        x.dtype if hasattr(x, "dtype") else jnp.result_type(x),
        allow_extended_dtype=True,  # random keys
    )
    weak = getattr(x, "weak_type", False)
    shape = np.shape(x) if shape is None else shape
    return jax.ShapeDtypeStruct(shape, dtype, weak_type=weak)
