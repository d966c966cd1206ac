"""How much masks leave, and masks of what is 0."""

import jax
import jax.numpy as jnp
import numpy as np

from jprune._core import counts as _counts
from jprune._core.checks import check_bool
from jprune._core.trees import (
    is_hole,
    is_nonzero,
    leaves_with_path,
    path_name,
)
from jprune._core.typing import Masks, Tree, Where
from jprune._core.where import PRUNED, check_where, choose


def read_masks(params: Tree, where: Where = None) -> Masks:
    """Makes masks from parameters that contain zeros: every zero is pruned.

    It is for a model trained with a lasso, or a pruned checkpoint without masks.

    Args:
      params: A tree of parameters, boxed or not.
      where: The leaves that are read, as in :func:`jprune.find_masks`, with the
        same default.

    Returns:
      A tree like ``params``: for selected leaves, bool arrays of the parameters'
      shapes (and sharding), False where a weight is 0 or -0;
      ``optax.MaskedNode()`` for the others. NaN is kept.

    Raises:
      ValueError: ``where`` selects nothing, or a leaf that is not floating.

    >>> import jax.numpy as jnp, jprune
    >>> params = {"kernel": jnp.array([[1., 0.], [-0., 2.]]), "bias": jnp.zeros(2)}
    >>> masks = jprune.read_masks(params)
    >>> masks
    {'bias': MaskedNode(), 'kernel': Array([[ True, False],
           [False,  True]], dtype=bool)}
    >>> tx = jprune.keep_masks(masks)  # what is 0 stays 0 in a fine-tuning
    """
    check_where("read_masks", where)
    chosen = choose("read_masks", where, params, PRUNED)
    return jax.tree.map(is_nonzero, chosen)


def measure_sparsity(masks: Masks) -> jax.Array:
    """Returns the fraction of the masked weights that is pruned, for logging.

    It runs inside ``jit``.

    Args:
      masks: A tree of masks; leaves without masks do not count.

    Returns:
      A scalar in [0, 1]; 0 for masks without weights.

    Raises:
      ValueError: A leaf is not bool; it is named.

    >>> import jax.numpy as jnp, jprune
    >>> jprune.measure_sparsity({"kernel": jnp.array([True, False]), "bias": None})
    Array(0.5, dtype=float32)
    """
    leaves = []
    for path, mask in leaves_with_path(masks):
        if is_hole(mask):
            continue
        check_bool(
            f"`measure_sparsity(masks)`: the mask of {path_name(path)!r}", mask
        )
        leaves.append(jnp.asarray(mask))
    size = sum(x.size for x in leaves)
    if not size:
        return jnp.zeros((), float)
    pruned = [jnp.sum(~x, dtype=np.int32) for x in leaves]
    total = _counts.total(_counts.count_of(jnp.stack(pruned)))
    return _counts.to_float(total) / size
