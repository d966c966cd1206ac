"""How parameters are multiplied, as plain data."""

from typing import NamedTuple

from jprune._core.tables import table


class Use(NamedTuple):
    """A product or convolution of a parameter with other values."""

    path: str
    in_axes: tuple[int, ...]  # contracted
    out_axes: tuple[int, ...]  # make outputs
    batch_axes: tuple[int, ...]  # products of their own: heads, layers, experts
    # How often each weight is multiplied in a call, rounded.
    count: int  # type: ignore[assignment]


class Products(NamedTuple):
    """What :func:`trace_products` returns; prints as a table."""

    uses: tuple[Use, ...]  # in the order of the parameters
    missed: dict[str, str]  # {path: why it is not among the uses, or not only}

    def __str__(self) -> str:
        head = ("parameter", "contracted", "outputs", "batch", "count")
        rows = [
            (path, *(", ".join(map(str, axes)) for axes in three), f"{count}")
            for path, *three, count in self.uses
        ]
        text = table([head, *rows, ("",) * 5], 4).rsplit("\n", 2)[0]
        missed = [f"missed: {path}: {why}" for path, why in self.missed.items()]
        return "\n".join([text, *missed])
