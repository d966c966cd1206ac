"""What arrays hold, in a few letters."""

import hashlib

import jax
import jax.numpy as jnp
import numpy as np

from jprune._core.trees import is_hole, leaves_with_path
from jprune._core.typing import Tree


def digest_of(tree: Tree, words: str = "") -> str:
    """A digest of all arrays of a tree, of their places, and of some words.

    >>> import numpy as np
    >>> from jprune._core.digests import digest_of
    >>> digest_of({"a": np.ones(2)}) == digest_of({"a": np.ones(3)})
    False
    """
    digest = hashlib.sha256(words.encode())
    for path, x in leaves_with_path(tree):
        digest.update(jax.tree_util.keystr(path).encode())
        if is_hole(x):
            continue
        if jnp.issubdtype(jnp.result_type(x), jax.dtypes.prng_key):
            x = jax.random.key_data(x)
        digest.update(f"{jnp.result_type(x)} {np.shape(x)}".encode())
        digest.update(np.ascontiguousarray(np.asarray(x)).tobytes())
    return digest.hexdigest()
