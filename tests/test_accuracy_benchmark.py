"""The benchmark of accuracy, as its quick mode runs it."""

import importlib.util
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jprune

SCRIPT = Path(__file__).parents[1] / "examples/benchmarks/accuracy.py"


def load() -> Any:
    spec = importlib.util.spec_from_file_location("accuracy", SCRIPT)
    module = importlib.util.module_from_spec(spec)  # type: ignore[arg-type]
    spec.loader.exec_module(module)  # type: ignore[union-attr]
    return module


@pytest.mark.heavy
def test_what_is_pruned_is_what_each_row_says() -> None:
    script = load()
    chosen = list(script.methods())[::12]
    results = script.benchmark(2, 20, chosen)
    lines = script.table(results).splitlines()
    assert lines[0].endswith("| 50% | 80% | 90% | 95% | 98% | 99% |")
    assert len(lines) == 2 + len(results) * (1 + len(chosen))
    for (name, (dense, rows)), most in zip(
        results.items(), (0.11, 0.64), strict=True
    ):  # most of the samples that are of one class
        assert dense.mean() > 90
        label, *cells = lines.pop(2).split(" | ")
        assert (label, cells[0]) == (f"| {name}", "none: dense")
        for method, (accuracy, zeros) in rows.items():
            assert lines.pop(2).startswith(f"| {name} | `{method.structure}`")
            means = accuracy.mean(0)  # [levels]
            assert means[0] > max(85, 100 * most + 20)
            assert means[-1] < means[0] + 1
            if method.structure == "unstructured()":
                inputs = 64 if name == "digits" else 30
                check(method, inputs, zeros)
    assert len(lines) == 2


def check(method: Any, inputs: int, zeros: dict[str, np.ndarray]) -> None:
    """The zeros ``[seeds, levels]`` of each kernel."""
    classes = {64: 10, 30: 2}[inputs]
    sizes = {
        "Dense_0": inputs * 300,
        "Dense_1": 300 * 100,
        "Dense_2": 100 * classes,
    }
    assert zeros.keys() == sizes.keys()
    levels = np.array(method.levels, np.float32).astype(float)
    if method.allocation == "uniform()":
        for name, size in sizes.items():
            assert (zeros[name] == np.round(levels * size)).all()
    else:
        total = np.sum([*zeros.values()], 0)
        assert (total == np.round(levels * sum(sizes.values()))).all()
        assert (zeros["Dense_2"] / sizes["Dense_2"] < levels).all()


def test_of_blocks_kernels_are_pruned_and_nothing_else() -> None:
    """In a stack the scales of norms have two axes, as kernels have."""
    script = load()

    def masks(stacked: bool) -> Any:
        model = script.Transformer(stacked)
        params = model.init(jax.random.key(0), jnp.zeros((1, 64)))
        uniform = jprune.allocations.uniform()
        return jprune.find_masks(
            params, 0.5, where=script.BLOCKS, allocation=uniform
        )

    sizes = []
    for stacked in (False, True):
        found = jax.tree_util.tree_leaves_with_path(
            jax.eval_shape(lambda stacked=stacked: masks(stacked))
        )
        assert {path[-1].key for path, _ in found} == {"kernel"}
        sizes.append(sum(mask.size for _, mask in found))
    assert sizes == 2 * [script.LAYERS * (4 * 32 * 32 + 2 * 32 * 64)]


@pytest.mark.heavy
def test_stacked_layers_lose_what_layers_of_their_own_lose() -> None:
    """Unrolled and under a scan: but for ties, which the first layer wins."""
    script = load()
    chosen = [
        method
        for method in script.network_methods()
        if method.allocation == "erdos_renyi()"
    ]
    results = script.benchmark(2, 20, chosen)
    assert list(results) == [
        "digits, CNN",
        "digits, transformer",
        "digits, scan",
    ]
    cnn, unrolled, stacked = (
        cells for _, rows in results.values() for cells in rows.values()
    )
    levels = np.array(script.SPARSITIES, np.float32).astype(float)
    for cells in (cnn, unrolled, stacked):
        pruned = [n for n in cells.zeros if cells is cnn or n[:6] == "blocks"]
        total = np.sum([cells.zeros[name] for name in pruned], 0)
        size = sum(cells.sizes[name] for name in pruned)
        assert (total == np.round(levels * size)).all()
    assert unrolled.sizes == stacked.sizes
    for name, zeros in unrolled.zeros.items():
        assert abs(zeros - stacked.zeros[name]).max() <= 1, name
    shares = {n: z[0, 2] / cnn.sizes[n] for n, z in cnn.zeros.items()}
    # As sum(shape) / prod(shape) of 3x3x1x16, 64x10, 512x64 and 3x3x16x32.
    assert sorted(shares, key=shares.__getitem__) == [
        *("Conv_0", "Dense_1", "Dense_0", "Conv_1")
    ]
    table = script.by_layer(results, 0.9).splitlines()
    assert len(table) == 2 + 12
    assert table[0].count("`erdos_renyi()`") == 2
