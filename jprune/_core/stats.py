"""What inputs looked like where parameters are multiplied: plain data."""

from dataclasses import dataclass
from functools import partial
from typing import Any, NamedTuple

import jax
import numpy as np

from jprune._core.tables import table
from jprune._core.views import Steps, look, put


class Moments(NamedTuple):
    """Sums over the rows of inputs that a kernel is multiplied with.

    They are float32 or wider. Leading axes are the layers of a scan. ``G`` counts
    parallel products: experts, groups of a convolution, batch axes.
    """

    gram: jax.Array  # [..., G, K, K], the sum of x x^T
    sum: jax.Array  # [..., G, K]
    count: jax.Array  # type: ignore[assignment]  # [..., G], rows, or their weights


class Site(NamedTuple):
    """A product of inputs with a parameter, read as kernels ``[..., G, K, N]``.

    ``K`` is contracted. For a convolution it is the input features, then the window.
    """

    path: str
    steps: Steps  # from the parameter to its matrices
    moments: int  # which of the inputs
    bias: str | None = None  # the parameter that is added to the outputs
    bias_steps: Steps = ()  # from it to [..., G, N]

    def matrix(self, leaf: Any) -> Any:
        """Reads the kernels ``[..., G, K, N]`` from the parameter."""
        return look(self.steps, leaf)

    def write(self, leaf: Any, matrix: Any) -> Any:
        """Returns the parameter with these kernels written into it."""
        return put(self.steps, leaf, matrix)


@partial(
    jax.tree_util.register_dataclass,
    data_fields=("moments",),
    meta_fields=("sites", "missed"),
)
@dataclass(frozen=True)
class Stats:
    """What :func:`jprune.calibrate` returns; prints as a table.

    Its sums can be added with ``jax.tree.map``. The table shows how many rows each
    parameter saw.
    """

    moments: tuple[Moments, ...]
    sites: tuple[Site, ...]
    missed: tuple[tuple[str, str], ...] = ()  # (path, why it has no product)

    def of(self, path: str) -> list[tuple[Site, Moments]]:
        """Returns the products of one parameter, each with its sums."""
        return [
            (site, self.moments[site.moments])
            for site in self.sites
            if site.path == path
        ]

    def paths(self) -> list[str]:
        """Returns the paths of the parameters that have products, each once."""
        return list(dict.fromkeys(site.path for site in self.sites))

    def __str__(self) -> str:
        rows = [("parameter", "inputs", "rows", "never active")]
        for site in self.sites:
            one = self.moments[site.moments]
            count, gram = np.asarray(one.count), np.asarray(one.gram)
            dead = (np.diagonal(gram, axis1=-2, axis2=-1) == 0).sum()
            size = " x ".join(map(str, one.sum.shape))
            rows.append((site.path, size, f"{count.sum():.6g}", f"{dead}"))
        text = table([*rows, ("",) * 4], 1).rsplit("\n", 2)[0]
        missed = [f"missed: {path}: {why}" for path, why in self.missed]
        return "\n".join([text, *missed])
