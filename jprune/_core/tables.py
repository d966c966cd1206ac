"""Tables of text, as reports print them."""

from collections.abc import Sequence


def table(rows: Sequence[Sequence[str]], left: int) -> str:
    """Rows in columns: a head, a rule, what there is, a rule, the total.

    Args:
      rows: The cells; the first row is the head, the last the total.
      left: How many columns are set to the left; the others are numbers.
    """
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    lines = [
        "  ".join(
            cell.ljust(width) if i < left else cell.rjust(width)
            for i, (cell, width) in enumerate(zip(row, widths, strict=True))
        ).rstrip()
        for row in rows
    ]
    rule = "-" * max(map(len, lines))
    return "\n".join([lines[0], rule, *lines[1:-1], rule, lines[-1]])


def shape_name(shape: Sequence[int]) -> str:
    """A shape as tables show it: ``"4x8"``."""
    return "x".join(map(str, shape)) or "scalar"
