"""What was tried, and what came of it."""

from collections.abc import Iterable
from typing import NamedTuple

from jprune._core.fits import Fit
from jprune._core.tables import table
from jprune.search.promise import Promise


class Point(NamedTuple):
    """A smaller model that :func:`compress` tried."""

    budget: float  # the fraction that was aimed at
    fit: Fit  # units of each pool, and what is left of each cost
    promise: Promise  # what it loses
    seconds: float | None = None  # of a call, if a timer decides
    dense_seconds: float | None = None  # of the dense model, timed beside it

    @property
    def times(self) -> float | None:
        """How many times as fast as the dense model it is; None if not timed."""
        if self.seconds is None or self.dense_seconds is None:
            return None
        return self.dense_seconds / self.seconds


class Front(tuple[Point, ...]):
    """Every model that was tried, from large to small; prints as a table.

    :func:`jprune.plot.front` draws it.
    """

    __slots__ = ()

    def __new__(cls, points: Iterable[Point] = ()) -> "Front":
        """From some points."""
        return super().__new__(cls, points)

    def __str__(self) -> str:
        if not self:
            return "nothing was tried"
        rows = [_cells(point) for point in self]
        head = max(map(list, rows), key=len)  # what fails is not timed
        body = [[row.get(name, "-") for name in head] for row in rows]
        text = table([head, *body, [""] * len(head)], 0)
        return text.rsplit("\n", 2)[0]


def _cells(point: Point) -> dict[str, str]:
    """What the table shows of a model."""
    found = {
        f"{name.replace('_', '-')} left": f"{100 * x:.1f} %"
        for name, x in point.fit.left.items()
        if name != "bytes"
    }
    promise = point.promise
    found |= {
        "score": f"{100 * promise.small:.2f}",
        "loss": f"{100 * promise.loss:.2f}",
        "at most": f"{100 * promise.bound:.2f}",
    }
    if promise.worst is not None:
        found["worst group"] = f"{100 * promise.worst.loss:.2f}"
    if point.seconds is not None:
        found["time"] = f"{1e3 * point.seconds:.3f} ms"
        found["dense"] = f"{1e3 * (point.dense_seconds or 0):.3f} ms"
    found["kept"] = "yes" if promise.kept else "no"
    return found
