"""Pruned parameters in a file: the values that are kept, and a bit for each weight."""

import hashlib
import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np

from jprune._core.checks import is_traced
from jprune._core.hosts import check_here
from jprune._core.programs import check_concrete
from jprune._core.trees import is_hole, leaves_with_path
from jprune._core.typing import Masks, Tree
from jprune.compaction.removal.plan import in_jax
from jprune.export import arrays, files
from jprune.export.trees import flat
from jprune.masks import align_masks, get_masks, has_masks, read_masks

FORMAT = "jprune.sparse"
VERSION = "1"
VALUES, BITS = ".values", ".bits"
_SAVE = "export.save_sparse(path, params, masks)"
_LOAD = "export.load_sparse(path)"


class Sparse(NamedTuple):
    """What :func:`load_sparse` returns."""

    params: dict[str, Any]  # by path; 0 where pruned
    masks: dict[str, Any]  # bool arrays, of the leaves that had masks


def save_sparse(
    path: str | Path, params: Tree, masks: Masks | None = None
) -> None:
    """Saves only the kept weights, with one bit per weight for the masks.

    The file is safetensors, which any reader of such files opens. A leaf ``w`` with a
    mask becomes two tensors: ``w.values``, the kept weights in the order of the leaf,
    and ``w.bits`` (uint8, ``numpy.packbits(mask, bitorder="little")``). Other leaves
    are stored as they are. The file holds the kept values, :math:`\\lceil n/8 \\rceil`
    bytes for each masked leaf of :math:`n` weights, and a header. Values keep all their
    bits: -0, NaN, every dtype.

    Args:
      path: The file. An old file is replaced once the new one is complete.
      params: A tree of concrete arrays.
      masks: Masks for it, as for :func:`jprune.apply_masks`; or the state of an
        optimizer that prunes, whose masks are used. None: the masks that
        :func:`jprune.read_masks` finds, which prune what is exactly 0.

    Raises:
      ValueError: A mask fits no parameter, or something is traced.
      ImportError: ``safetensors`` is not installed.

    >>> import tempfile, jax.numpy as jnp, jprune
    >>> params = {"w": jnp.array([[1., -2.], [3., 4.]])}
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     file = f"{folder}/w.safetensors"
    ...     jprune.export.save_sparse(file, params, jprune.find_masks(params, .5))
    ...     jprune.export.load_sparse(file).params["w"].tolist()
    [[0.0, 0.0], [3.0, 4.0]]
    """
    place = files.check_file(_SAVE, path)
    for name, x in flat(params).items():
        check_concrete(f"`{_SAVE}`: {name!r}", x)
    masks = _masks_of(params, masks)
    check_here(_SAVE, params, masks)
    aligned = align_masks(f"`{_SAVE}`", params, masks)
    kept = [
        mask
        for (_, x), mask in zip(leaves_with_path(params), aligned, strict=True)
        if not is_hole(x)
    ]
    tensors: dict[str, np.ndarray] = {}
    leaves = {}
    for (name, x), mask in zip(flat(params).items(), kept, strict=True):
        if is_traced(mask):
            raise ValueError(f"`{_SAVE}`: the mask of {name!r} is traced.")
        parts, about = _parts(name, x, mask)
        tensors |= parts
        if about:
            leaves[name] = about
    if len(tensors) < sum(1 if mask is None else 2 for mask in kept):
        raise ValueError(
            f"`{_SAVE}`: a parameter is called like the values or bits of "
            f"another one: {', '.join(sorted(tensors))}."
        )
    notes = {
        "format": FORMAT,
        "version": VERSION,
        "leaves": json.dumps(leaves, separators=(",", ":")),
    }
    notes["sha256"] = _digest(tensors, notes["leaves"])
    files.write(
        place, arrays.to_bytes("save_sparse(path, ...)", tensors, **notes)
    )


def _masks_of(params: Tree, masks: Any) -> Masks:
    if masks is None:
        return read_masks(params)
    nodes = jax.tree.leaves(masks, is_leaf=has_masks)
    return get_masks(masks) if any(map(has_masks, nodes)) else masks


def _parts(
    name: str, x: Any, mask: Any
) -> tuple[dict[str, np.ndarray], dict[str, Any]]:
    """The tensors of one leaf, and what they don't say themselves."""
    array, dtype = arrays.stored(x)
    about: dict[str, Any] = {}
    if dtype != str(array.dtype):
        about["dtype"] = dtype
    if mask is None:
        return {name: array}, about
    full = np.broadcast_to(np.asarray(mask), np.shape(x))
    about["shape"] = list(np.shape(x))
    return {
        name + VALUES: array[full],
        name + BITS: np.packbits(full.reshape(-1), bitorder="little"),
    }, about


def _digest(tensors: Mapping[str, np.ndarray], leaves: str) -> str:
    """The hash of all that a file says."""
    found = hashlib.sha256(leaves.encode())
    for name, x in sorted(tensors.items()):
        found.update(f"{name!r} {x.dtype} {x.shape}\n".encode())
        found.update(np.asarray(x, order="C").tobytes())
    return found.hexdigest()


def load_sparse(path: str | Path) -> Sparse:
    """Loads parameters and masks that :func:`save_sparse` wrote.

    Args:
      path: The file.

    Returns:
      ``params`` and ``masks``, both dicts by path; :func:`unflat` puts them in a
      tree. Pruned weights are 0.

    Raises:
      ValueError: The file is damaged or not such a file; the message names the place
        and the rule.
      ImportError: ``safetensors`` is not installed.
    """
    place = f"`{_LOAD}`: '{path}'"
    try:
        data = files.as_path(_LOAD, path).read_bytes()
    except OSError as error:
        raise ValueError(f"{place} can't be read: {error.strerror}.") from None
    tensors, notes = arrays.from_bytes("load_sparse(path)", place, data)
    found = notes.get("format"), notes.get("version")
    if found != (FORMAT, VERSION):
        raise ValueError(
            f"{place}: format and version are {found}, read are "
            f"{(FORMAT, VERSION)}."
        )
    text = notes.get("leaves", "")
    if notes.get("sha256") != _digest(tensors, text):
        raise ValueError(
            f"{place}: the SHA-256 is not that of the tensors; the file is "
            "damaged."
        )
    try:
        leaves = json.loads(text)
        return _read(place, tensors, leaves)
    except (KeyError, TypeError, AttributeError, RecursionError) as error:
        raise ValueError(f"{place}: no sparse file: {error!r}.") from None


def _read(
    place: str, tensors: dict[str, np.ndarray], leaves: dict[str, Any]
) -> Sparse:
    params, masks = {}, {}
    rest = dict(tensors)
    for name, about in leaves.items():
        if "shape" not in about:
            continue
        shape = tuple(map(int, about["shape"]))
        values, bits = rest.pop(name + VALUES), rest.pop(name + BITS)
        mask = _mask(f"{place}, {name + BITS!r}", bits, shape)
        rows = np.zeros((math.prod(shape), *values.shape[1:]), values.dtype)
        count = int(mask.sum())
        if len(values) != count:
            raise ValueError(
                f"{place}, {name + VALUES!r}: {len(values)} values, and "
                f"{count} bits that are set."
            )
        rows[mask.reshape(-1)] = values
        params[name] = rows.reshape(*shape, *values.shape[1:])
        masks[name] = in_jax(mask)
    params |= rest
    dtypes = {name: x.get("dtype") for name, x in leaves.items()}
    return Sparse(
        {
            name: in_jax(
                arrays.restored(
                    f"{place}, {name!r},", x, dtypes.get(name) or str(x.dtype)
                )
            )
            for name, x in sorted(params.items())
        },
        masks,
    )


def _mask(place: str, bits: np.ndarray, shape: tuple[int, ...]) -> np.ndarray:
    n = math.prod(shape)
    good = bits.dtype == np.uint8 and bits.shape == (-(-n // 8),)
    if min(shape, default=0) < 0 or not good:
        raise ValueError(
            f"{place}: {bits.size} bytes of bits; {shape} needs {-(-n // 8)}."
        )
    flags = np.unpackbits(bits, bitorder="little")
    if flags[n:].any():
        raise ValueError(f"{place}: bits are set behind the last weight.")
    return flags[:n].reshape(shape).astype(bool)
