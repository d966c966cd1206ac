"""What goes into the files of a bundle, and comes out of them."""

import importlib.metadata
import json
from collections.abc import Mapping
from typing import Any

from jprune.compaction import Certificate
from jprune.compaction.removal.plan import in_jax
from jprune.export import arrays, case

_PACKAGES = ("jprune", "jax", "jaxlib", "numpy")


def tensors(held: Mapping[str, Any]) -> bytes:
    """Arrays of any type, and a note of the types that readers don't know."""
    found = {name: arrays.stored(x) for name, x in held.items()}
    types = {
        name: dtype
        for name, (x, dtype) in found.items()
        if str(x.dtype) != dtype
    }
    return arrays.to_bytes(
        "save(path, ...)",
        {name: x for name, (x, _) in found.items()},
        **({"types": json.dumps(types)} if types else {}),
    )


def arrays_of(place: str, data: bytes) -> dict[str, Any]:
    """Arrays by name, of the types that were noted."""
    found, notes = arrays.from_bytes("load(path)", place, data)
    try:
        types = json.loads(notes.get("types", "{}"))
    except ValueError as error:
        raise ValueError(f"{place}: types are no JSON: {error}.") from None
    return {
        name: in_jax(
            arrays.restored(
                f"{place}, {name!r},", x, types.get(name, str(x.dtype))
            )
        )
        for name, x in sorted(found.items())
    }


def versions() -> dict[str, str]:
    """Of what a file depends on."""
    found = {}
    for name in _PACKAGES:
        try:
            found[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            found[name] = "?"
    return found


def certificate_to(certificate: Certificate | None) -> Any:
    """A certificate as JSON."""
    if certificate is None:
        return None
    # JSON has no inf.
    return {
        k: v if isinstance(v, int) else repr(float(v))
        for k, v in certificate._asdict().items()
    }


def certificate_of(data: Any) -> Certificate | None:
    """A certificate from JSON."""
    if data is None:
        return None
    return Certificate(
        float(data["error"]),
        float(data["scale"]),
        int(data["cases"]),
        int(data["skipped"]),
    )


def drawn_of(data: Any) -> case.Drawn:
    """An input that is drawn, from JSON."""
    shape, dtype, low, high = (
        data[k] for k in ("shape", "dtype", "low", "high")
    )
    return case.Drawn(tuple(map(int, shape)), str(dtype), int(low), int(high))
