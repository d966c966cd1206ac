"""The examples of compaction, as a user runs them."""

import re
import subprocess
import sys
from pathlib import Path

import pytest

EXAMPLES = Path(__file__).parent.parent / "examples"


def run(script: str, *flags: str) -> str:
    return subprocess.check_output(
        [sys.executable, str(EXAMPLES / script), *flags], text=True, timeout=300
    )


@pytest.mark.slow
def test_digits() -> None:
    out = run("compact.py", "--epochs=3", "--rounds=2")
    rows = {line.split()[0]: line.split() for line in out.splitlines() if line}
    assert rows["dense"][2] == "50,610"
    assert rows["50%"][2] == "17,810"  # 64-150-50-10
    errors = re.findall(r"largest error (\S+) of", out)
    assert len(errors) == 4
    assert all(float(error) < 1e-4 for error in errors)
    assert "aster than dense" in out.splitlines()[-2]
    assert out.endswith(" s in all.\n")


@pytest.mark.slow
def test_benchmark() -> None:
    out = run("benchmarks/compaction.py", "--batches", "1", "--rounds=1")
    ideals = [line.split("|")[5].strip() for line in out.splitlines()[4:]]
    assert ideals == ["1.00", "1.55", "2.78", "6.93", "19.93"]


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_memory() -> None:
    out = run("benchmarks/compaction_memory.py", "--width=512", "--layers=3")
    assert "932,362 parameters, 335,114 are left" in out
