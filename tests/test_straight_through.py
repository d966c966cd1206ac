"""Forward masked, gradient untouched."""

import subprocess
import sys
from pathlib import Path
from typing import Any

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax.sharding import AxisType, NamedSharding
from jax.sharding import PartitionSpec as P

import jprune

ROOT = Path(__file__).parent.parent


def make_params(dtype: Any = jnp.float32) -> Any:
    values = jax.random.normal(jax.random.key(0), (8, 16)).astype(dtype)
    return {"kernel": values, "bias": jnp.ones(16, dtype)}


def loss(params: Any) -> Any:
    return sum(jnp.sum(p**3) for p in jax.tree.leaves(params))


@pytest.mark.sweep(2)
@pytest.mark.parametrize("dtype", ["float16", "bfloat16", "float32", "float64"])
def test_gradient_is_that_at_the_masked_weights(dtype: str) -> None:
    with jax.enable_x64(dtype == "float64"):
        params = make_params(dtype)
        masks = jprune.find_masks(params, 0.6)
        through = lambda p: loss(jprune.straight_through(p, masks))
        value, grads = jax.jit(jax.value_and_grad(through))(params)
        sparse = jprune.apply_masks(params, masks)
        wanted, expected = jax.jit(jax.value_and_grad(loss))(sparse)
        assert value == wanted
        chex.assert_trees_all_equal(grads, expected)
        chex.assert_trees_all_equal_shapes_and_dtypes(grads, params)
    chex.assert_trees_all_equal(jprune.straight_through(params, masks), sparse)


@pytest.mark.slow
def test_pruned_weights_get_gradients_of_their_own() -> None:
    params, masks = jnp.array([3.0, -2.0]), jnp.array([True, False])
    outer = lambda p: jnp.sum(jprune.straight_through(p, masks) * 5.0)
    assert jax.grad(outer)(params).tolist() == [5.0, 5.0]
    assert jax.jvp(outer, (params,), (jnp.ones(2),))[1] == 10.0
    twice = jax.hessian(lambda p: outer(p) ** 2)(params)
    assert twice.tolist() == [[50.0, 50.0], [50.0, 50.0]]


def test_not_a_number_does_not_pass() -> None:
    params = jnp.array([1.0, jnp.nan, jnp.inf, -jnp.inf])
    masks = jnp.array([True, False, False, False])
    square = lambda p: jnp.sum(jprune.straight_through(p, masks) ** 2)
    value, grads = jax.value_and_grad(square)(params)
    assert value == 1.0
    assert grads.tolist() == [2.0, 0.0, 0.0, 0.0]


def test_decay_pulls_pruned_weights_only() -> None:
    params = make_params()
    masks = jprune.find_masks(params, 0.6)
    through = lambda p, rate: loss(
        jprune.straight_through(p, masks, decay=rate)
    )
    grads = jax.jit(jax.grad(through))(params, 0.5)
    plain = jax.grad(through)(params, 0.0)
    pruned = ~np.asarray(masks["kernel"])
    pull = np.where(pruned, 0.5 * np.asarray(params["kernel"]), 0)
    np.testing.assert_allclose(grads["kernel"], plain["kernel"] + pull, 1e-6)
    chex.assert_trees_all_equal(grads["bias"], plain["bias"])


def test_boxes_holes_and_broadcast_masks() -> None:
    from flax import nnx

    model = nnx.Linear(4, 4, rngs=nnx.Rngs(0))
    params = nnx.state(model, nnx.Param)
    masks = jprune.find_masks(params, 0.5)
    sparse = jprune.straight_through(params, masks)
    chex.assert_trees_all_equal_structs(sparse, params)
    assert int(jnp.sum(sparse["kernel"][...] == 0)) == 8
    rows = {"a": jnp.array([[True], [False]]), "b": None}
    held = {"a": jnp.ones((2, 2)), "b": optax.MaskedNode()}
    out = jprune.straight_through(held, rows)
    assert out["a"].tolist() == [[1, 1], [0, 0]]


def test_masks_chosen_inside_the_loss() -> None:
    def train(params: Any) -> Any:
        tx = optax.sgd(0.05)

        def chosen(p: Any) -> Any:
            masks = jprune.find_masks(p, 0.75)
            sparse = jprune.straight_through(p, masks, decay=0.01)
            return jnp.sum((sparse["kernel"] - 0.3) ** 2)

        def step(carry: Any, _: Any) -> Any:
            params, state = carry
            updates, state = tx.update(jax.grad(chosen)(params), state)
            return (optax.apply_updates(params, updates), state), None

        return jax.lax.scan(step, (params, tx.init(params)), length=40)[0][0]

    models = jax.tree.map(lambda p: jnp.stack([p, -p]), make_params())
    landed = jax.jit(jax.vmap(train))(models)
    first = jprune.find_masks(make_params(), 0.75)["kernel"]
    alone = jax.tree.map(lambda p: p[0], landed)
    last = jprune.find_masks(alone, 0.75)["kernel"]
    assert int(last.sum()) == 32
    assert np.any(np.asarray(first != last)), "no weight ever came back"


@pytest.mark.sweep(2)
@pytest.mark.parametrize("kind", [AxisType.Auto, AxisType.Explicit])
def test_meshes(kind: AxisType) -> None:
    params = make_params()

    def grads(params: Any) -> Any:
        masks = jprune.find_masks(params, 0.5)
        through = lambda p: loss(jprune.straight_through(p, masks, decay=0.1))
        return masks, jax.grad(through)(params)

    alone = jax.jit(grads)(params)
    mesh = jax.make_mesh((8,), ("x",), axis_types=(kind,))
    with jax.set_mesh(mesh):
        specs = {"kernel": P("x", None), "bias": P()}
        sharded = jax.tree.map(
            lambda p, s: jax.device_put(p, NamedSharding(mesh, s)),
            params,
            specs,
        )
        masks, found = jax.jit(grads)(sharded)
    chex.assert_trees_all_equal(jax.tree.map(np.asarray, masks), alone[0])
    chex.assert_trees_all_close(
        jax.tree.map(np.asarray, found), alone[1], rtol=1e-6
    )
    assert found["kernel"].sharding.is_equivalent_to(
        NamedSharding(mesh, P("x", None)), 2
    )


@pytest.mark.slow
def test_benchmark_prints_its_table() -> None:
    script = ROOT / "examples" / "benchmarks" / "straight_through.py"
    command = [sys.executable, str(script), "--rounds=1", "--batch=8"]
    printed = subprocess.check_output(command, text=True)
    shown = (ROOT / "docs/outputs/straight_through.txt").read_text()
    first = [line.split("|")[:2] for line in printed.splitlines()]
    assert first[1:] == [line.split("|")[:2] for line in shown.splitlines()][1:]
