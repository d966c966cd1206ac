"""Sizes of arguments that are symbols of ``jax.export``."""

import re
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from compaction_models import MODELS
from jax import export

import jprune
from jprune import report

SHAPES = {  # of the only argument
    "convolutional": "b, 8, 8, 3",
    "residual": "b, t, 5",
}


class Case(NamedTuple):
    """A model, half of its units 0, and the shape of its argument."""

    fn: Any
    params: Any
    x: jax.Array
    any_size: jax.ShapeDtypeStruct
    graph: Any


@pytest.fixture(scope="module", params=SHAPES)
def case(request: pytest.FixtureRequest) -> Case:
    models = []

    def build() -> Any:
        models.append(MODELS[request.param]())
        return models[0].params, models[0].args

    params, (x,) = jax.eval_shape(build)  # first weights are not needed
    fn, rng = models[0].fn, np.random.default_rng(0)
    shape = export.symbolic_shape(SHAPES[request.param])
    any_size = jax.ShapeDtypeStruct(shape, x.dtype)
    graph = jprune.trace_units(fn, params, any_size)
    dead = np.zeros(2 + max(int(p.units.max()) for p in graph.pools), bool)
    for pool in graph.pools:
        dead[pool.units[:, ::2]] = True  # the last is no unit
    leaves = []
    for leaf, axes in zip(graph.leaves, graph.units, strict=True):
        value = rng.uniform(0.1, 1, leaf.shape)
        for axis, units in enumerate(axes):
            gone = dead[units].any(-1)  # [positions] or [layers, positions]
            at = (0, axis) if gone.ndim == 2 else (axis,)
            rest = [k for k in range(value.ndim) if k not in at]
            value[np.broadcast_to(np.expand_dims(gone, rest), leaf.shape)] = 0
        leaves.append(jnp.asarray(value, leaf.dtype))
    params = jax.tree.unflatten(jax.tree.structure(params), leaves)
    x = jnp.asarray(rng.standard_normal(x.shape), x.dtype)
    return Case(fn, params, x, any_size, graph)


@pytest.mark.sweep(2)
def test_a_model_is_compacted_and_exported_for_all_sizes(case: Case) -> None:
    small = jprune.compact(case.fn, case.params, case.any_size)
    for pool in case.graph.pools:
        assert small.plan.sizes[pool.name] == pool.units.shape[1] // 2
    exported = export.export(small.fn)(small.params, case.any_size)
    for times in (1, 3):
        x = jnp.concatenate([case.x] * times)
        found = small.certify(x, seeds=1)
        assert found.error <= 1e-5 * found.scale
        np.testing.assert_allclose(
            exported.call(small.params, x),
            small.fn(small.params, x),
            rtol=1e-5,
        )


@pytest.mark.sweep(2)
def test_units_plans_and_costs_are_those_of_numbers(case: Case) -> None:
    """In costs a symbol counts as 1."""
    shape = [n if isinstance(n, int) else 1 for n in case.any_size.shape]
    one = jax.ShapeDtypeStruct(shape, case.x.dtype)
    graph = jprune.trace_units(case.fn, case.params, case.x)
    for pool, other in zip(case.graph.pools, graph.pools, strict=True):
        assert pool.axes == other.axes
        np.testing.assert_array_equal(pool.units, other.units)
    found, known = (
        report.cost(case.fn, case.params, arg) for arg in (case.any_size, one)
    )
    assert found == known
    assert found.compact.multiply_adds < found.dense.multiply_adds / 2


def test_parts_of_an_axis_beside_a_symbol() -> None:
    """JAX writes a slice beside a symbol as a lookup; a split remains one."""

    def sliced(p: Any, x: jax.Array) -> jax.Array:
        h = x @ p["w"]
        return (h[:, :4] * h[:, 4:]) @ p["v"]

    def split(p: Any, x: jax.Array) -> jax.Array:
        a, b = jnp.split(x @ p["w"], 2, -1)
        return (a * b) @ p["v"]

    params = {"w": jnp.ones((3, 8)), "v": jnp.ones((4, 2))}
    any_size = jax.ShapeDtypeStruct(export.symbolic_shape("b, 3"), float)
    pool, *more = jprune.trace_units(split, params, any_size).pools
    assert (pool.units.shape, more) == ((1, 4), [])
    graph = jprune.trace_units(sliced, params, any_size)
    assert not any(("w", 1) in pool.axes for pool in graph.pools)
    reasons = {(f.path, f.axis): f.reason for f in graph.frozen}
    assert reasons["w", 1] == "gather: the axis is looked up"


@pytest.mark.parametrize(
    "call",
    [
        jprune.trace_units,
        jprune.trace_products,
        jprune.compact,
        report.cost,
    ],
)
def test_a_parameter_of_symbolic_size_is_refused(call: Any) -> None:
    def fn(params: Any, x: jax.Array) -> jax.Array:
        return jax.nn.relu(x @ params["w"]) @ params["v"]

    v = jax.ShapeDtypeStruct(export.symbolic_shape("n, 3"), jnp.float32)
    message = (
        f"`{call.__name__}(fn, params, *args)`: the parameter 'v' must have "
        "sizes that are numbers, got the shape (n, 3); only axes of arguments "
        "may be symbols."
    )
    with pytest.raises(ValueError, match=re.escape(message)):
        call(fn, {"w": jnp.ones((4, 8)), "v": v}, jnp.ones((2, 4)))
