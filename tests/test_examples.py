"""The Iris example and the code of the README, as a user runs them."""

import os
import re
import subprocess
import sys
from functools import partial
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
README = (ROOT / "README.md").read_text(encoding="utf-8")


def run_iris(*flags: str, **env: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, str(ROOT / "examples" / "iris.py"), *flags],
        capture_output=True,
        text=True,
        env={**os.environ, **env},
        timeout=300,
    )


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    """The command has run; and what runs it again, compiled already."""
    folder = tmp_path_factory.mktemp("iris")
    flags = ("--epochs=2", "--seeds=2", "--rate=0.4", "--sparsity=0.7")
    cache = {
        "JAX_COMPILATION_CACHE_DIR": str(folder / "cache"),
        "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0",
        "JAX_DISABLE_MOST_OPTIMIZATIONS": "1",
    }
    plot = folder / "iris.png"
    first = run_iris(*flags, "--plot", str(plot), **cache)
    return first, partial(run_iris, *flags, **cache), plot


def rows_of(stdout: str) -> dict[str, list[str]]:
    """The cells of each row by its name."""
    cells = r"(.{26}) +(\S+%) +(\S+%|-) +(\S+/170) +(\S+%) +(\S+) +(\S+) +(\S+)"
    found = [re.fullmatch(cells, line) for line in stdout.splitlines()]
    return {m[1].strip(): list(m.groups()[1:]) for m in found if m}


@pytest.mark.slow
def test_iris_prints_every_row(runs):
    assert runs[0].returncode == 0, runs[0].stderr
    assert list(rows_of(runs[0].stdout)) == [
        "dense",
        "scaled by 1 - 0.4",
        "one-shot 40%",
        "one-shot 40%, fine-tuned",
        "gradual to 70%",
        "global 70%, fine-tuned",
        "problem 1, compression",
        "problem 2, ... in the ball",
        "problem 3, fit in the ball",
        "automatic, 10 points",
    ]


@pytest.mark.slow
def test_iris_counts_zeros_exactly(runs):
    rows = rows_of(runs[0].stdout)
    kept = {name: cells[2] for name, cells in rows.items()}
    sparsity = {name: cells[3] for name, cells in rows.items()}
    assert kept["one-shot 40%"] == "102/170"
    assert kept["one-shot 40%, fine-tuned"] == "102/170"
    assert kept["gradual to 70%"] == "51/170"
    assert kept["global 70%, fine-tuned"] == "51/170"
    assert sparsity["global 70%, fine-tuned"] == "70.0%"
    for name in rows:
        if name.startswith(("dense", "scaled", "problem")):
            assert kept[name] == "170/170"
            assert sparsity[name] == "0.0%"


@pytest.mark.slow
def test_iris_stores_what_it_keeps(runs):
    for cells in rows_of(runs[0].stdout).values():
        kept = int(cells[2].split("/")[0])
        assert int(cells[5]) == kept
        assert int(cells[6]) == 4 * (kept + 23) + 22


@pytest.mark.slow
def test_iris_stays_in_the_ball(runs):
    rows = rows_of(runs[0].stdout)
    assert float(rows["problem 2, ... in the ball"][4]) <= 2.5
    assert float(rows["problem 3, fit in the ball"][4]) <= 2.5


@pytest.mark.slow
def test_iris_concludes_in_two_sentences(runs):
    conclusion = runs[0].stdout.split("\n\n")[-2].splitlines()
    assert len(conclusion) == 2
    assert conclusion[0].endswith("and remove none of the 170 weights.")
    assert "keeps 51 of them in 318 bytes (dense: 794)" in conclusion[1]


@pytest.mark.slow
def test_iris_says_what_it_promises(runs):
    words = runs[0].stdout.split("\n\n")[-1]
    assert words.startswith("What `compress` says of the last row:")
    assert "On 30 samples that no search has seen" in words


@pytest.mark.slow
def test_iris_repeats_itself(runs):
    again = runs[1]()
    assert again.returncode == 0, again.stderr
    assert runs[0].stdout == again.stdout


@pytest.mark.slow
def test_iris_shows_progress_on_stderr(runs):
    assert "16/16" in runs[0].stderr
    assert "epoch/s" not in runs[0].stdout


@pytest.mark.slow
def test_iris_plots(runs):
    assert runs[2].read_bytes().startswith(b"\x89PNG")


@pytest.mark.parametrize(
    ("flag", "value", "message"),
    [
        ("--sparsity", "1.5", "must be a number in [0, 1], got '1.5'"),
        ("--epochs", "0", "must be a whole number in [1, 10,000], got '0'"),
        ("--radius", "nan", "got 'nan'"),
        ("--plot", "nowhere/iris.png", "in a folder that exists"),
    ],
)
def test_iris_refuses_bad_flags(flag, value, message, iris, capsys):
    with pytest.raises(SystemExit) as stop:
        iris.main([flag, value])
    assert stop.value.code == 2
    assert f"argument {flag}: " in (stderr := capsys.readouterr().err)
    assert message in stderr


@pytest.fixture
def iris(monkeypatch):
    monkeypatch.syspath_prepend(ROOT / "examples")
    return pytest.importorskip("iris")


@pytest.mark.slow
def test_readme_shows_the_table_of_the_example(runs):
    table = rows_of(README)
    assert len(table) == len(rows_of(runs[0].stdout)) == 10
    assert table["gradual to 80%"][2] == "34/170"


@pytest.mark.parametrize(
    "command",
    [
        'python -m pip install -e ".[examples]" && python examples/iris.py',
        'python -m pip install -e ".[test]" && python -m pytest',
    ],
)
def test_readme_has_its_commands(command):
    assert f"```sh\n{command}\n```" in README


def test_readme_code_runs():
    names: dict = {}
    for code in re.findall(r"```python\n(.*?)```", README, re.DOTALL):
        exec(code, names)
        if "tx" in names and "params" in names:
            names["tx"].init(names["params"])
    assert names["sparsity"] == 0.5
