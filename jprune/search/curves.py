"""What is lost if a pool keeps so many of its units, as plain data."""

import json
from os import PathLike
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from jprune._core.costs import Polynomial
from jprune._core.tables import table


class Curves(NamedTuple):
    """What :func:`sensitivity` returns; prints as a table.

    For each pool, ``counts`` are numbers of kept units, falling from all of them.
    ``losses`` are the losses if the pool keeps that many and all other pools are whole:
    they start at 0 and never fall.
    """

    names: tuple[str, ...]  # of pools
    numbers: np.ndarray  # int64, how often each is there: layers of a stack
    sizes: np.ndarray  # int64, its units
    counts: tuple[np.ndarray, ...]  # int64 [levels] of each pool
    losses: tuple[np.ndarray, ...]  # float64 [levels]
    costs: dict[str, Polynomial]  # by name, of the shares that pools keep
    round_to: int = 1  # pools keep a multiple of it, or all

    def __str__(self) -> str:
        marks = (0.75, 0.5, 0.25, 0.1)
        head = ("pool", "units", *(f"at {mark:.0%}" for mark in marks))
        rows = [head]
        for name, number, size, counts, losses in zip(
            self.names,
            self.numbers,
            self.sizes,
            self.counts,
            self.losses,
            strict=True,
        ):
            at = np.interp(np.array(marks) * size, counts[::-1], losses[::-1])
            units = f"{size:,}" if number == 1 else f"{number} x {size:,}"
            rows.append((name, units, *(f"{x:.4f}" for x in at)))
        text = table([*rows, ("",) * len(head)], 1)
        return text.rsplit("\n", 2)[0]

    def save(self, path: str | PathLike[str]) -> None:
        """Writes the curves as JSON, for :meth:`load`."""
        data = self._asdict()
        for name in ("numbers", "sizes"):
            data[name] = data[name].tolist()
        for name in ("counts", "losses"):
            data[name] = [x.tolist() for x in data[name]]
        data["costs"] = {
            name: [cost.amounts.tolist(), cost.pools.tolist()]
            for name, cost in self.costs.items()
        }
        Path(path).write_text(json.dumps(data), encoding="utf-8")

    @classmethod
    def load(cls, path: str | PathLike[str]) -> "Curves":
        """Reads curves that :meth:`save` wrote.

        Raises:
          ValueError: The file holds no curves.
        """
        try:
            data = json.loads(Path(path).read_text(encoding="utf-8"))
            return cls(
                tuple(map(str, data["names"])),
                _integers(data["numbers"]),
                _integers(data["sizes"]),
                tuple(map(_integers, data["counts"])),
                tuple(np.array(x, float) for x in data["losses"]),
                {name: _cost(*cost) for name, cost in data["costs"].items()},
                int(data["round_to"]),
            )
        except (AttributeError, KeyError, TypeError, ValueError) as error:
            raise ValueError(
                f"`Curves.load({str(path)!r})`: the file holds no curves: "
                f"{error!r}."
            ) from None


def _integers(numbers: Any) -> np.ndarray:
    return np.array(numbers, np.int64)


def _cost(amounts: Any, pools: Any) -> Polynomial:
    found = np.array(amounts, float)
    return Polynomial(found, np.array(pools, np.int32).reshape(len(found), -1))
