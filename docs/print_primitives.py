"""Writes the page of the primitives that jprune understands.

python docs/print_primitives.py
"""

import inspect
from collections import defaultdict
from pathlib import Path

from jprune.compaction.graph.walk import RULES
from jprune.jaxprs.records import RECORDS
from jprune.jaxprs.versions import CALLS

PAGE = Path(__file__).parent / "outputs" / "primitives.md"


def page() -> str:
    """What becomes of axes, a line for each record, and whose it is."""
    names: defaultdict[str, list[str]] = defaultdict(list)
    for name, fn in {**RECORDS, **RULES}.items():
        first = inspect.getdoc(fn).partition("\n")[0].replace("``", "`")  # type: ignore[union-attr]
        names[first].append(f"`{name}`")
    names["As if it stood here."] = [f"`{name}`" for name in sorted(CALLS)]
    rows = [
        f"| {', '.join(sorted(several))} | {first} |"
        for first, several in names.items()
    ]
    return "\n".join(
        ["| primitives | what becomes of units |", "|---|---|", *rows]
    )


if __name__ == "__main__":
    PAGE.write_text(page() + "\n", encoding="utf-8")
