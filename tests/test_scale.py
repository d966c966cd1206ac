"""What operations cost on a mesh: no weight travels, and formulas hold."""

import importlib
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import pytest
from jax.sharding import AxisType, NamedSharding
from jax.sharding import PartitionSpec as P

import jprune

FOLDER = Path(__file__).parents[1] / "examples/benchmarks"


@pytest.fixture
def mesh() -> Any:
    devices = jax.devices()[:8]
    return jax.make_mesh((8,), ("model",), (AxisType.Auto,), devices=devices)


@pytest.fixture
def scripts(monkeypatch: pytest.MonkeyPatch) -> Any:
    monkeypatch.syspath_prepend(FOLDER)
    return importlib.import_module("cost_model")


UP, DOWN = (None, None, "model"), (None, "model", None)


def kernels(mesh: Any) -> Any:
    """Of a hidden layer, divided along its units, as abstract arrays."""

    def leaf(shape: tuple[int, ...], spec: Any) -> Any:
        sharding = NamedSharding(mesh, P(*spec))
        return jax.ShapeDtypeStruct(shape, jnp.bfloat16, sharding=sharding)

    return {
        "mlp": {
            "down": leaf((4, 256, 64), DOWN),
            "up": leaf((4, 64, 256), UP),
        }
    }


@pytest.mark.optimized
def test_formulas_and_no_weight_travels(scripts: Any, mesh: Any) -> None:
    tree = kernels(mesh)
    size = scripts.size_of(tree, 8)
    model = scripts.costs(size, 1)[scripts.UNIFORM]
    with jax.set_mesh(mesh):
        find = jax.jit(lambda p: jprune.find_masks(p, 0.5))
        compiled = find.lower(tree).compile()
    found = scripts.compiled_cost(scripts.UNIFORM, compiled, size)
    assert found.numbers == model.numbers == 8
    # Both counts of the loop, of scores and of places, are in the program.
    assert found.exchanges == 2 * model.exchanges == 2 * 7 * 2
    # Masks lie where scores of other leaves were.
    assert 0.6 * model.held < found.held < 1.1 * model.held
    assert found.traffic == pytest.approx(model.traffic, rel=0.1)


@pytest.mark.optimized
@pytest.mark.slow
@pytest.mark.parametrize("name", ["REFRESH", "BETWEEN", "RIGL", "UNITS"])
def test_formulas_of_other_operations(
    scripts: Any, mesh: Any, name: str
) -> None:
    with jax.set_mesh(mesh):
        tree = scripts.scale.abstract("stacked", 1e6, mesh)
        size, name = scripts.size_of(tree, 8), getattr(scripts, name)
        model = scripts.costs(size, 1)[name]
        make = scripts.programs(scripts.scale.stacked, tree, 64)[name]
        found = scripts.compiled_cost(name, make(), size)
    assert found.held == pytest.approx(model.held, rel=0.1)
    assert model.numbers <= found.numbers <= model.numbers + 1
