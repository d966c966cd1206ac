"""Benchmarks at small sizes: what they measure is what they say."""

import importlib
import subprocess
import sys
from pathlib import Path
from typing import Any

import jax
import numpy as np
import pytest

import jprune

FOLDER = Path(__file__).parents[1] / "examples/benchmarks"


@pytest.mark.slow
def test_channels_of_a_resnet_go_in_multiples_of_8(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.syspath_prepend(FOLDER)
    script = importlib.import_module("resnet")
    module = script.ResNet((16, 24))
    images = np.random.default_rng(0).random((1024, 784), np.float32)
    variables = module.init(jax.random.key(0), images[:2])

    def fn(variables: Any, x: Any) -> Any:
        return module.apply(variables, x)

    result = script.pruned(fn, variables, images, 0.6)
    small = jprune.compact(fn, result.params, images[:2], masks=result.masks)
    channels = [int(n) for n in script.channels(small.params).split()]
    assert not any(n % 8 for n in channels)
    assert sum(channels) < 16 + 2 * 16 + 3 * 24
    found = small.certify(images[:2])
    assert found.error <= 1e-4 * found.scale


@pytest.mark.slow
def test_no_weight_is_exchanged_on_eight_devices() -> None:
    operations = ["read pass", "find_masks, uniform", "find_masks, units"]
    operations += ["prune, masks chosen", "keep_masks"]
    command = [sys.executable, str(FOLDER / "scale.py"), "--parameters=1e6"]
    command += ["--forms", "stacked", "--only", *operations]
    printed = subprocess.check_output(command, text=True)
    assert "3,937,280 parameters in 7 leaves" in printed
    found = {
        name: int(line.split()[-1].replace(",", ""))
        for line in printed.splitlines()
        for name in operations
        if line.startswith(f"{name} ")
    }
    assert found.keys() == {*operations}
    assert found["keep_masks"] == 0
    assert found["find_masks, uniform"] <= 64
    assert found["prune, masks chosen"] <= 64
    # The scores of all hidden units: 80 layers of 4 * 64.
    assert found["find_masks, units"] <= 80 * 4 * 64 + 1


@pytest.mark.slow
def test_the_rows_of_jprune_without_its_peers(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.syspath_prepend(FOLDER)
    monkeypatch.delenv("JAXPRUNER", raising=False)
    script = importlib.import_module("peers")
    few = ["jprune, Erdos-Renyi", "jprune, Erdos-Renyi (target)"]
    few += ["jprune, SET", "jprune, activation, Erdos-Renyi (target)"]
    monkeypatch.setattr(script, "JPRUNE", {n: script.JPRUNE[n] for n in few})
    argv = ["--libraries", "JaxPruner", "jprune", "--sparsities=.98"]
    script.main([*argv, "--steps=200", "--seeds=2", "--left=.25"])
    printed = capsys.readouterr().out
    assert "JaxPruner is left out" in printed
    rows: dict[str, list[str]] = {}
    for line in printed.splitlines():
        name, *cells = line.replace(" +- ", "+-").split("  ")
        rows.setdefault(name, [cell.strip() for cell in cells if cell])
    for name in few:
        kept, zeros, held, *_ = rows[name]
        assert kept == "1004"
        assert int(zeros) < 300 if name == "jprune, SET" else zeros == "0"
        assert float(held.split("+-")[0]) > 50
    widths, products, _, held, *_ = rows["jprune, repaired, about 0.25"]
    assert widths == "64-118-39-10"
    assert int(products.replace(",", "")) == 64 * 118 + 118 * 39 + 390
    assert float(held.split("+-")[0]) > 90
