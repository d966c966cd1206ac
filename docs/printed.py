"""Reads numbers from what scripts have printed, `outputs/*.txt`."""

import math
import re
from collections.abc import Sequence
from pathlib import Path

import numpy as np

OUTPUTS = Path(__file__).parent / "outputs"
NUMBER = r"-?\d[\d,]*(?:\.\d+)?(?:e-?\d+)?"
MEAN = rf"{NUMBER}(?: (?:\+-|±) {NUMBER})?"  # and its standard error


class Unread(ValueError):
    """An output has another form than is read here."""


def find(run: str, pattern: str) -> list[str]:
    """The groups of the first line of an output that matches."""
    text = read(run)
    match = re.search(pattern, text, re.M)
    if not match:
        raise Unread(unread(run, f"line like {pattern!r}"))
    return [tidy(group) for group in match.groups()]


def cells(run: str, heads: str, row: str, count: int) -> list[str]:
    """A row of the table with these heads: ``count`` cells after its name.

    Two blanks are between the heads.
    """
    columns = r"[|\s]+".join(re.escape(head) for head in heads.split("  "))
    parts = re.split(
        rf"^[| ]*{columns}[| ]*$", read(run), maxsplit=1, flags=re.M
    )
    table = parts[-1].partition("\n\n")[0] if parts[1:] else ""
    # A wide cell may come one blank after the name, with its sign.
    name = rf"^[| ]*{re.escape(row)}(?:  +| *\|| (?=-))(.*)$"
    line = re.search(name, table, re.M)
    found = []
    if line and "|" in line[0]:
        found = [cell.strip() for cell in line[1].split("|")[:-1]]
    elif line:
        found = re.findall(rf"({MEAN})(?: ?%)?(?= |$)", line[1])
    if len(found) != count:
        wanted = f"row {row!r} of {count} cells below the heads {heads!r}"
        raise Unread(unread(run, wanted))
    return [tidy(cell) for cell in found]


def read(run: str) -> str:
    """What was printed."""
    return _file(run).read_text(encoding="utf-8")


def _file(run: str) -> Path:
    return OUTPUTS / f"{Path(run).name}.txt"


def unread(run: str, wanted: str) -> str:
    """What an error says."""
    return (
        f"docs/outputs/{_file(run).name} has no {wanted}: did its script "
        "change what it prints?"
    )


def tidy(cell: str) -> str:
    """With the sign that is used on pages."""
    return cell.replace("+-", "±")


def minus(cell: str) -> str:
    """A number with the other sign, and the same error."""
    return cell[1:] if cell.startswith("-") else f"-{cell}"


def value(cell: str) -> tuple[float, float]:
    """A number and its standard error, 0 if there is none."""
    mean, _, error = cell.replace(",", "").partition(" ± ")
    return float(mean), float(error or 0)


def difference(a: str, b: str) -> str:
    """``a - b``, as if their errors were independent."""
    digits = len(a.partition(" ")[0].partition(".")[2])
    (x, e), (y, f) = value(a), value(b)
    error = f" ± {math.hypot(e, f):.{digits}f}" if e or f else ""
    return f"{x - y:.{digits}f}{error}"


def mean(values: Sequence[float]) -> str:
    """And its standard error."""
    error = np.std(values, ddof=1) / len(values) ** 0.5
    return f"{np.mean(values):.1f} ± {error:.1f}"


def share(part: str, whole: str) -> str:
    """In percent."""
    return f"{100 * value(part)[0] / value(whole)[0]:.1f} %"
