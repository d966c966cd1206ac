"""The benchmark of accuracy, in its quick mode."""

import re
import subprocess
import sys
from pathlib import Path

import pytest

SCRIPT = Path(__file__).parents[1] / "examples/benchmarks/accuracy.py"


@pytest.mark.heavy
def test_every_cell_is_an_accuracy() -> None:
    printed = subprocess.check_output(
        [sys.executable, SCRIPT, "--quick"], text=True
    )
    rows = [
        x for x in printed.splitlines() if x.startswith(("| digits", "| b"))
    ]
    assert len(rows) == 12
    for row in rows:
        means = [float(x) for x in re.findall(r"([\d.]+) ± ", row)]
        assert len(means) == 6
        assert all(0 <= mean <= 100 for mean in means)
    dense = [row for row in rows if "none: dense" in row]
    assert len(dense) == 2
