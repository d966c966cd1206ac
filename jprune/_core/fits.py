"""How many units each pool keeps, as plain data."""

from typing import NamedTuple

import numpy as np

from jprune._core.tables import table


class Fit(NamedTuple):
    """What :func:`jprune.search.fit` returns; prints as a table.

    :func:`jprune.allocations.fitted` takes it.
    """

    names: tuple[str, ...]  # of pools
    numbers: np.ndarray  # int64, how often each is there: layers of a stack
    sizes: np.ndarray  # int64, its units
    counts: np.ndarray  # int64, those that stay
    costs: dict[str, float]  # what the smaller model costs, by the cost's name
    left: dict[str, float]  # the same as fractions of the whole model's
    loss: float  # what curves say of it

    @property
    def sparsity(self) -> float:
        """The fraction of all units removed; the sparsity to use with `fitted`."""
        units = self.numbers @ self.sizes
        return float(self.numbers @ (self.sizes - self.counts) / max(units, 1))

    def __str__(self) -> str:
        rows = [("pool", "units", "kept", "fraction")]
        for name, number, size, count in zip(
            self.names, self.numbers, self.sizes, self.counts, strict=True
        ):
            units = f"{size:,}" if number == 1 else f"{number} x {size:,}"
            part = f"{count / size:.1%}" if size else "-"
            rows.append((name, units, f"{count:,}", part))
        left = ", ".join(f"{name} {x:.1%}" for name, x in self.left.items())
        total = ("left", "", "", left)
        return table([*rows, total], 1)


Fit.__module__ = "jprune.search"  # where users find it
