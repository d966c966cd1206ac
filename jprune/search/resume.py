"""What was made so far, in a folder, for a search that is killed and goes on."""

import json
import os
from os import PathLike
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jprune._core.trees import is_floating, is_hole, leaves_with_path, rebuild
from jprune._core.typing import Masks, Tree


class Folder:
    """Pruned parameters of each candidate, in files that are whole or not there."""

    def __init__(self, path: str | PathLike[str], asked: str) -> None:
        self.path = Path(path)
        self.path.mkdir(parents=True, exist_ok=True)
        known = self.path / "search.json"
        if not known.exists():
            _write(known, json.dumps({"asked": asked}).encode())
            return
        try:
            found = json.loads(known.read_text(encoding="utf-8"))["asked"]
        except (KeyError, TypeError, ValueError) as error:
            raise ValueError(
                f"`compress(resume={str(path)!r})`: {known.name} there is none of "
                f"a search: {error!r}."
            ) from None
        if found != asked:
            raise ValueError(
                f"`compress(resume={str(path)!r})` holds another search, of other "
                "parameters, data or options; name another folder."
            )

    def load(self, number: int, params: Tree) -> tuple[Tree, Masks] | None:
        """What :meth:`save` wrote, at the places of ``params``."""
        file = self.path / f"{number:03d}.npz"
        if not file.exists():
            return None
        with np.load(file) as stored:
            leaves = leaves_with_path(params)
            found = [
                _restored(stored[f"p{i}"], x) if f"p{i}" in stored else x
                for i, (_, x) in enumerate(leaves)
            ]
            masks = [
                jnp.asarray(stored[f"m{i}"]) if f"m{i}" in stored else None
                for i in range(len(leaves))
            ]
        return rebuild(params, found), rebuild(params, masks)

    def save(self, number: int, params: Tree, masks: Masks) -> None:
        """Writes a candidate: beside, then renamed."""
        arrays: dict[str, Any] = {}
        for i, (_, x) in enumerate(leaves_with_path(params)):
            if not is_hole(x) and is_floating(x):
                arrays[f"p{i}"] = _bits(x)
        for i, (_, mask) in enumerate(leaves_with_path(masks)):
            if not is_hole(mask):
                arrays[f"m{i}"] = np.asarray(mask)
        file = self.path / f"{number:03d}.npz"
        part = file.with_suffix(".part.npz")
        np.savez(part, **arrays)
        os.replace(part, file)


def _write(file: Path, data: bytes) -> None:
    part = file.with_suffix(".part")
    part.write_bytes(data)
    os.replace(part, file)


def _bits(x: Any) -> np.ndarray:
    """An array as files know it: small floats, which NumPy does not, as bits."""
    found = np.asarray(x)
    plain = found.dtype in (np.float16, np.float32, np.float64)
    return found if plain else found.view(f"u{found.dtype.itemsize}")


def _restored(stored: np.ndarray, x: Any) -> jax.Array:
    dtype = jnp.result_type(x)
    found = stored if stored.dtype.kind == "f" else stored.view(dtype)
    if isinstance(x, jax.Array) and x.committed:
        placed: jax.Array = jax.device_put(found, x.sharding)
        return placed
    return jnp.asarray(found)
