"""Masks: bool trees beside the parameters, True = kept."""

from collections.abc import Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

from jprune import _counts
from jprune._checks import check_floating, check_state, is_traced
from jprune._describe import describe
from jprune._paths import align_part
from jprune._tables import shape_name, table
from jprune._trees import (
    is_array,
    is_floating,
    is_hole,
    is_nonzero,
    leaves_with_path,
    path_name,
    rebuild,
    unbox,
    unique_names,
)
from jprune._typing import Masks, Tree, Where
from jprune._where import check_where, choose, not_pruned


def align_masks(
    call: str, params: Tree, masks: Masks
) -> list[jax.typing.ArrayLike | None]:
    """The mask of each leaf or hole of ``params``, None where there is none.

    Masks may cover a part of the parameters: see :func:`align_part`.

    Returns:
      Masks with as many axes as their parameters, or none.

    Raises:
      ValueError: A mask has no parameter, another shape or dtype, or masks a
        leaf that is not floating; the leaf is named.
    """
    aligned: list[Any] = []
    for (path, leaf), mask in zip(
        leaves_with_path(params),
        align_part(masks, params, call),
        strict=True,
    ):
        if mask is not None:
            check_floating(call, path, leaf)
            place = f"{call}: the mask of {path_name(path)!r}"
            _check_bool(place, mask)
            mask = _with_axes(place, mask, np.shape(leaf))
        aligned.append(mask)
    return aligned


def _check_bool(place: str, mask: Any) -> None:
    found = getattr(mask, "dtype", type(mask).__name__)
    if found != "bool":
        raise ValueError(f"{place} must be bool, got {found}.")


def _with_axes(place: str, mask: Any, wanted: tuple[int, ...]) -> Any:
    """A mask that broadcasts without a promotion of ranks."""
    shape = np.shape(mask)
    if not _broadcasts(shape, wanted):
        raise ValueError(
            f"{place} has shape {shape}, which does not broadcast to the "
            f"parameter's {wanted}."
        )
    if len(shape) in (0, len(wanted)):
        return mask
    return mask.reshape((1,) * (len(wanted) - len(shape)) + shape)


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
        to them; ``None`` or ``optax.MaskedNode`` where nothing is pruned. They
        are matched by path, and may leave out parameters or mirror one branch:
        masks of ``variables["params"]`` serve for ``variables``.

    Returns:
      A tree like ``params``, of its shapes and dtypes.

    Raises:
      ValueError: A mask fits no parameter or masks fit several branches; the
        leaf is named.

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
    ``nnx.Optimizer``, Linen's ``TrainState`` or any other tree. So are they in
    the dicts that ``nnx.state`` or a checkpoint makes of such states. Several
    pruners are merged: what one of them prunes is pruned.

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

    def is_state(node: Any) -> bool:
        return has_masks(node) or _was_state(node)

    nodes = jax.tree.leaves(opt_state, is_leaf=is_state)
    found = [
        unbox(node.masks if has_masks(node) else node["masks"])
        for node in nodes
        if is_state(node)
    ]
    if not found:
        raise ValueError(
            "`get_masks(opt_state)` found no pruner (`keep_masks`, `prune`, "
            f"`rewire`) in {describe(opt_state)}. What is exactly 0 in the "
            "parameters, `jprune.read_masks(params)` says."
        )
    for masks in found:
        check_state("get_masks(opt_state)", masks)
    merged = found[0]
    for masks in found[1:]:
        merged = _merge(merged, masks)
    return merged


def has_masks(node: Any) -> bool:
    """Whether a node of a tree is the state of a pruner."""
    return "masks" in getattr(node, "_fields", ())


def _was_state(node: Any) -> bool:
    """Whether it is one of which ``nnx.state`` or a checkpoint made a dict."""
    if not isinstance(node, Mapping) or "masks" not in node:
        return False
    dtypes = [getattr(x, "dtype", 0) for x in jax.tree.leaves(node["masks"])]
    return bool(dtypes) and all(dtype == np.bool_ for dtype in dtypes)


def _merge(a: Masks, b: Masks) -> Masks:
    """Both; where one of them has a hole, the other, which may be a branch."""
    if is_hole(a) or is_hole(b):
        return b if is_hole(a) else a
    if jax.tree_util.all_leaves([a]):
        return a & b
    return jax.tree.map(_merge, a, b, is_leaf=lambda node: node is not a)


def read_masks(params: Tree, where: Where = None) -> Masks:
    """Masks of what is exactly 0: after a lasso, or in someone's checkpoint.

    Args:
      params: A tree of parameters, boxed or not.
      where: The leaves that are read, as in :func:`jprune.find_masks`, with the
        same default.

    Returns:
      A tree like ``params``: bool arrays of the parameters' shapes (and
      sharding), False where a weight is 0 or -0, for selected leaves;
      ``optax.MaskedNode()`` for the others. NaN is kept.

    Raises:
      ValueError: ``where`` selects nothing or what is not floating.

    >>> import jax.numpy as jnp, jprune
    >>> params = {"kernel": jnp.array([[1., 0.], [-0., 2.]]), "bias": jnp.zeros(2)}
    >>> masks = jprune.read_masks(params)
    >>> masks
    {'bias': MaskedNode(), 'kernel': Array([[ True, False],
           [False,  True]], dtype=bool)}
    >>> tx = jprune.keep_masks(masks)  # what is 0 stays 0 in a fine-tuning
    """
    check_where("read_masks", where)
    chosen = choose("read_masks", where, params, not_pruned)
    return jax.tree.map(is_nonzero, chosen)


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
        _check_bool(
            f"`measure_sparsity(masks)`: the mask of {path_name(path)!r}", mask
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
    zeros: int  # entries that are exactly 0
    masked: bool  # whether there is a mask, given or read


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


def summarize(params: Tree, masks: Masks | None = None) -> Summary:
    """Counts weights, kept weights and zeros, leaf by leaf.

    Args:
      params: A tree of concrete parameters.
      masks: Masks for it, as for :func:`apply_masks`. Without them, kept is what
        is not exactly 0, in the leaves that are pruned by default: the masks are
        those of :func:`read_masks`.

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
    leaves = leaves_with_path(params)
    names = unique_names([path for path, _ in leaves])
    aligned = align_masks(call, params, masks)
    rows = []
    for name, (path, leaf), mask in zip(names, leaves, aligned, strict=True):
        if is_hole(leaf) or not is_array(leaf):
            continue
        if is_traced(leaf) or is_traced(mask):
            raise ValueError(f"{call}: {name!r} is traced.")
        size, zeros = int(np.size(leaf)), _zeros(leaf)
        read = masks is None and not_pruned(path, leaf) is None
        kept = size - zeros if read else size
        if mask is not None:
            full = np.broadcast_to(np.asarray(mask), np.shape(leaf))
            kept = int(np.count_nonzero(full))
        rows.append(
            LeafSummary(
                path=name,
                shape=tuple(np.shape(leaf)),
                dtype=str(getattr(leaf, "dtype", type(leaf).__name__)),
                weights=size,
                kept=kept,
                zeros=zeros,
                masked=read or mask is not None,
            )
        )
    return Summary(tuple(rows))


def _zeros(leaf: Any) -> int:
    """How many entries are 0; of what holds no numbers, keys say, none."""
    dtype = getattr(leaf, "dtype", None)
    if dtype is not None and jnp.issubdtype(dtype, jax.dtypes.extended):
        return 0
    marks = is_nonzero(leaf) if is_floating(leaf) else leaf
    return int(np.size(leaf)) - int(jnp.count_nonzero(marks))
