"""Masks: bool trees beside the parameters, True = kept."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

from jprune import _counts
from jprune._checks import check_floating, check_state, is_traced
from jprune._tables import shape_name, table
from jprune._trees import (
    align,
    is_array,
    is_hole,
    leaves_with_path,
    path_name,
    rebuild,
    unbox,
)
from jprune._typing import Masks, Tree


def align_masks(
    call: str, params: Tree, masks: Masks
) -> list[jax.typing.ArrayLike | None]:
    """The mask of each leaf or hole of ``params``, None where there is none.

    Raises:
      ValueError: ``masks`` has another structure, shape or dtype, or masks a
        leaf that is not floating; the leaf is named.
    """
    aligned: list[Any] = []
    for (path, leaf), mask in zip(
        leaves_with_path(params),
        align(masks, params, call, prefix=False),
        strict=True,
    ):
        if is_hole(mask):
            aligned.append(None)
            continue
        check_floating(call, path, leaf)
        found = getattr(mask, "dtype", type(mask).__name__)
        if found != "bool":
            raise ValueError(
                f"{call}: the mask of {path_name(path)!r} must be bool, "
                f"got {found}."
            )
        shape, wanted = np.shape(mask), np.shape(leaf)
        if not _broadcasts(shape, wanted):
            raise ValueError(
                f"{call}: the mask of {path_name(path)!r} has shape {shape}, "
                f"which does not broadcast to the parameter's {wanted}."
            )
        aligned.append(mask)
    return aligned


def _broadcasts(shape: tuple[int, ...], wanted: tuple[int, ...]) -> bool:
    try:
        return np.broadcast_shapes(shape, wanted) == wanted
    except ValueError:
        return False


def full_masks(call: str, params: Tree, masks: Masks) -> Masks:
    """``masks`` as a tree that mirrors ``params``, in arrays of its own.

    Made from the parameters, so that they have their sharding.
    """
    leaves = [
        leaf if is_hole(leaf) else _full(leaf, mask)
        for (_, leaf), mask in zip(
            leaves_with_path(params),
            align_masks(call, params, masks),
            strict=True,
        )
    ]
    return rebuild(params, leaves)


def _full(leaf: Any, mask: Any) -> Any:
    if mask is None:
        return optax.MaskedNode()
    return jnp.ones_like(leaf, dtype=bool) & mask


def apply_masks(params: Tree, masks: Masks) -> Tree:
    """Sets the pruned weights to zero.

    A selection and no product: what is pruned becomes 0 even where it was NaN
    or infinite, and what is kept keeps its bits.

    Args:
      params: A tree of parameters, boxed or not.
      masks: Masks for it: bool arrays of the parameters' shapes or broadcasting
        to them; ``None`` or ``optax.MaskedNode`` where nothing is pruned.

    Returns:
      A tree like ``params``, of its shapes and dtypes.

    Raises:
      ValueError: ``masks`` does not fit ``params``; the leaf is named.

    >>> import jax.numpy as jnp, jprune
    >>> jprune.apply_masks(
    ...     {"kernel": jnp.array([1., jnp.nan])},
    ...     {"kernel": jnp.array([True, False])})
    {'kernel': Array([1., 0.], dtype=float32)}
    """
    aligned = align_masks("`apply_masks(params, masks)`", params, masks)
    leaves = [
        leaf if mask is None else jnp.where(mask, leaf, jnp.zeros_like(leaf))
        for (_, leaf), mask in zip(
            leaves_with_path(params), aligned, strict=True
        )
    ]
    return rebuild(params, leaves)


def get_masks(opt_state: Any) -> Masks:
    """The masks in the state of an optimizer, however it is composed.

    Found are the states of ``keep_masks``, ``prune`` and of any transform whose
    state is a ``NamedTuple`` with a field ``masks``; inside ``optax.chain``,
    ``masked``, ``partition``, ``MultiSteps``, ``inject_hyperparams``,
    ``nnx.Optimizer``, Linen's ``TrainState`` or any other tree. Several pruners
    are merged: what one of them prunes is pruned.

    Args:
      opt_state: An optimizer state, or any tree that holds one.

    Returns:
      Masks as plain arrays, in the structure of the parameters; boxes of Flax
      are taken off.

    Raises:
      ValueError: No pruner is found, or the masks are no longer bool.

    >>> import jax.numpy as jnp, optax, jprune
    >>> tx = optax.chain(optax.sgd(.1), jprune.keep_masks(jnp.array([True, False])))
    >>> jprune.get_masks(tx.init(jnp.ones(2)))
    Array([ True, False], dtype=bool)
    """

    def has_masks(node: Any) -> bool:
        return "masks" in getattr(node, "_fields", ())

    nodes = jax.tree.leaves(opt_state, is_leaf=has_masks)
    found = [unbox(node.masks) for node in nodes if has_masks(node)]
    if not found:
        raise ValueError(
            "`get_masks(opt_state)` found no pruner (`keep_masks`, `prune`) in "
            f"{jax.tree.structure(opt_state)}."
        )
    for masks in found:
        check_state("get_masks(opt_state)", masks)
    merged = found[0]
    for masks in found[1:]:
        merged = _merge(merged, masks)
    return merged


def _merge(a: Masks, b: Masks) -> Masks:
    """Both; where one of them has a hole, the other, which may be a branch."""
    if is_hole(a) or is_hole(b):
        return b if is_hole(a) else a
    if jax.tree_util.all_leaves([a]):
        return a & b
    return jax.tree.map(_merge, a, b, is_leaf=lambda node: node is not a)


def measure_sparsity(masks: Masks) -> jax.Array:
    """The fraction of the selected weights that is pruned.

    Runs inside ``jit``; made for logging.

    Args:
      masks: A mask tree; leaves without masks do not count.

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
        found = getattr(mask, "dtype", type(mask).__name__)
        if found != "bool":
            raise ValueError(
                f"`measure_sparsity(masks)`: the mask of {path_name(path)!r} must "
                f"be bool, got {found}."
            )
        leaves.append(jnp.asarray(mask))
    size = sum(x.size for x in leaves)
    if not size:
        return jnp.zeros((), float)
    pruned = [jnp.sum(~x, dtype=np.int32) for x in leaves]
    total = _counts.total(_counts.count_of(jnp.stack(pruned)))
    return _counts.to_float(total) / size


class LeafSummary(NamedTuple):
    """What one leaf of the parameters holds."""

    path: str
    shape: tuple[int, ...]
    dtype: str
    weights: int  # entries
    kept: int  # entries that the masks keep; all where there is no mask
    zeros: int  # entries that are 0
    masked: bool  # whether there is a mask


class Summary(NamedTuple):
    """What :func:`summarize` returns; prints as a table."""

    leaves: tuple[LeafSummary, ...]

    @property
    def weights(self) -> int:
        """Entries of all leaves."""
        return sum(leaf.weights for leaf in self.leaves)

    @property
    def kept(self) -> int:
        """Entries that stay: all of a leaf without a mask."""
        return sum(leaf.kept for leaf in self.leaves)

    @property
    def zeros(self) -> int:
        """Entries that are 0."""
        return sum(leaf.zeros for leaf in self.leaves)

    @property
    def sparsity(self) -> float:
        """The fraction of the masked leaves' weights that is pruned."""
        masked = [leaf for leaf in self.leaves if leaf.masked]
        weights = sum(leaf.weights for leaf in masked)
        return (
            1 - sum(leaf.kept for leaf in masked) / weights if weights else 0.0
        )

    def __str__(self) -> str:
        head = (
            "leaf",
            "shape",
            "dtype",
            "weights",
            "kept",
            "sparsity",
            "zeros",
        )
        rows = [head]
        for leaf in self.leaves:
            sparsity = 1 - leaf.kept / leaf.weights if leaf.weights else 0.0
            rows.append(
                (
                    leaf.path,
                    shape_name(leaf.shape),
                    leaf.dtype,
                    f"{leaf.weights:,}",
                    f"{leaf.kept:,}",
                    f"{sparsity:.1%}" if leaf.masked else "-",
                    f"{leaf.zeros:,}",
                )
            )
        rows.append(
            (
                "total",
                "",
                "",
                f"{self.weights:,}",
                f"{self.kept:,}",
                f"{self.sparsity:.1%}",
                f"{self.zeros:,}",
            )
        )
        return table(rows, left=3)


def _is_opaque(leaf: Any) -> bool:
    """Whether a leaf holds no numbers but, say, random keys."""
    dtype = getattr(leaf, "dtype", None)
    return dtype is not None and jnp.issubdtype(dtype, jax.dtypes.extended)


def summarize(params: Tree, masks: Masks) -> Summary:
    """Counts weights, kept weights and zeros, leaf by leaf.

    Args:
      params: A tree of concrete parameters.
      masks: Masks for it, as for :func:`apply_masks`.

    Returns:
      A :class:`Summary`: data with ``str`` as a table.

    Raises:
      ValueError: ``masks`` does not fit ``params``, or they are traced.

    >>> import jax.numpy as jnp, jprune
    >>> params = {"kernel": jnp.array([[3., 0.], [1., 2.]]), "bias": jnp.ones(2)}
    >>> print(jprune.summarize(params, jprune.find_masks(params, .5)))
    leaf    shape  dtype    weights  kept  sparsity  zeros
    ------------------------------------------------------
    bias    2      float32        2     2         -      0
    kernel  2x2    float32        4     2     50.0%      1
    ------------------------------------------------------
    total                         6     4     50.0%      1
    """
    call = "`summarize(params, masks)`"
    rows = []
    for (path, leaf), mask in zip(
        leaves_with_path(params), align_masks(call, params, masks), strict=True
    ):
        if is_hole(leaf) or not is_array(leaf):
            continue
        if is_traced(leaf) or is_traced(mask):
            raise ValueError(f"{call}: {path_name(path)!r} is traced.")
        size = int(np.size(leaf))
        kept = size
        if mask is not None:
            full = np.broadcast_to(np.asarray(mask), np.shape(leaf))
            kept = int(np.count_nonzero(full))
        zeros = 0 if _is_opaque(leaf) else size - int(jnp.count_nonzero(leaf))
        rows.append(
            LeafSummary(
                path=path_name(path),
                shape=tuple(np.shape(leaf)),
                dtype=str(getattr(leaf, "dtype", type(leaf).__name__)),
                weights=size,
                kept=kept,
                zeros=zeros,
                masked=mask is not None,
            )
        )
    return Summary(tuple(rows))
