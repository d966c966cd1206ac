"""`axes=products`: structures along the axes that are really multiplied."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn

import jprune
from jprune import allocations, structures

KEY = jax.random.key(0)


def attention(p: Any, x: Any) -> Any:
    q = jnp.einsum("bd,dhw->bhw", x, p["q"])
    return jnp.einsum("bhw,hwd->bd", q, p["out"])


def torch_like(p: Any, x: Any) -> Any:
    return x @ p["weight"].T


def stacked(p: Any, x: Any) -> Any:
    def layer(x: Any, w: Any) -> Any:
        return jnp.tanh(w @ x), None

    return jax.lax.scan(layer, x, p["w"])[0]


# Function, shapes, an input, and by leaf what gives [layers, in, out].
CASES: dict[str, tuple[Any, Any, Any, Any]] = {
    "torch": (
        torch_like,
        {"weight": (8, 16)},
        jnp.ones((1, 16)),
        {"weight": lambda w: w.T[None]},
    ),
    "attention": (
        attention,
        {"q": (16, 2, 8), "out": (2, 8, 16)},
        jnp.ones((1, 16)),
        {
            "q": lambda w: w.reshape(1, 16, 16),
            "out": lambda w: w.reshape(1, 16, 16),
        },
    ),
    "stacked": (
        stacked,
        {"w": (3, 8, 8)},
        jnp.ones(8),
        {"w": lambda w: w.transpose(0, 2, 1)},
    ),
}


def drawn(shapes: Any) -> Any:
    return {
        name: jax.random.normal(jax.random.fold_in(KEY, i), shape)
        for i, (name, shape) in enumerate(shapes.items())
    }


@pytest.mark.parametrize("name", CASES)
@pytest.mark.parametrize("kind", ["n_m", "fan_in", "group", "block"])
def test_as_kernels_of_two_axes(name: str, kind: str) -> None:
    """Each layer's kernel as [in, out] by hand is the oracle."""
    fn, shapes, x, order = CASES[name]
    params = drawn(shapes)
    make: Any = {
        "n_m": lambda **a: structures.n_m(2, 4, **a),
        "fan_in": structures.fan_in,
        "group": lambda **a: structures.group(2, **a),
        "block": lambda **a: structures.block((2, 4), **a),
    }[kind]
    products = jprune.trace_products(fn, params, x)
    structure = make(axes=products)
    masks = jprune.find_masks(params, 0.5, structure=structure)
    for path, w in params.items():
        moved, mask = (order[path](np.asarray(a)) for a in (w, masks[path]))
        plain = [
            jprune.find_masks(jnp.asarray(layer), 0.5, structure=make())
            for layer in moved
        ]
        np.testing.assert_array_equal(mask, np.stack(plain))


def test_n_m_runs_along_the_axis_that_is_multiplied() -> None:
    params = drawn({"weight": (32, 16)})
    products = jprune.trace_products(torch_like, params, jnp.ones((1, 16)))
    structure = structures.n_m(2, 4, axes=products)
    mask = jprune.find_masks(params, 0.5, structure=structure)["weight"]
    assert (np.asarray(mask).reshape(32, -1, 4).sum(-1) == 2).all()


def test_variables_and_their_params_have_the_same_axes() -> None:
    model = nn.Dense(8)
    variables = model.init(KEY, jnp.ones((1, 16)))
    products = jprune.trace_products(model.apply, variables, jnp.ones((1, 16)))
    structure = structures.fan_in(axes=products)
    whole = jprune.find_masks(variables, 0.5, structure=structure)["params"]
    part = jprune.find_masks(variables["params"], 0.5, structure=structure)
    np.testing.assert_array_equal(whole["kernel"], part["kernel"])


def test_erdos_renyi_sees_one_layer_of_a_stack() -> None:
    fn, shapes, x, _ = CASES["stacked"]
    params = drawn(shapes | {"other": (8, 32)})

    def both(p: Any, x: Any) -> Any:
        return fn(p, x) @ p["other"]

    products = jprune.trace_products(both, params, x)
    rule = allocations.erdos_renyi()
    found = jprune.find_masks(
        params,
        0.5,
        structure=structures.fan_in(axes=products),
        allocation=rule,
    )
    layers = jprune.find_masks(
        {"other": params["other"]}
        | {str(i): w.T for i, w in enumerate(params["w"])},
        0.5,
        structure=structures.fan_in(),
        allocation=rule,
    )
    assert found["other"].sum() == layers["other"].sum()
    assert found["w"].sum() == sum(layers[str(i)].sum() for i in range(3))


def test_what_has_no_axes_is_refused() -> None:
    params = drawn({"w": (8, 8), "table": (4, 8)})

    def tied(p: Any, x: Any) -> Any:
        return x @ p["w"] @ p["w"].T

    products = jprune.trace_products(tied, params, jnp.ones((1, 8)))
    structure = structures.fan_in(axes=products)
    with pytest.raises(ValueError, match=r"`fan_in\(axes=.*'table'.*not used"):
        jprune.find_masks(params, 0.5, structure=structure)
    with pytest.raises(ValueError, match=r"'w'.*different axes"):
        jprune.find_masks({"w": params["w"]}, 0.5, structure=structure)
    other = {"a": params["w"], "b": params["w"]}

    def fn(p: Any, x: Any) -> Any:
        return x @ p["a"] @ p["b"].T

    products = jprune.trace_products(fn, other, jnp.ones((1, 8)))
    structure = structures.fan_in(axes=products)
    with pytest.raises(ValueError, match=r"'c'.*in no product"):
        jprune.find_masks({"c": params["w"]}, 0.5, structure=structure)

    def twice(p: Any, x: Any) -> Any:
        return x @ p["a"] @ (p["a"] * 2) @ p["b"]

    products = jprune.trace_products(twice, other, jnp.ones((1, 8)))
    structure = structures.fan_in(axes=products)
    with pytest.raises(ValueError, match=r"'a'.*multiplied after mul"):
        jprune.find_masks(other, 0.5, structure=structure)
    with pytest.raises(ValueError, match=r"axes=\.\.\., in_axis=.*one of both"):
        structures.n_m(2, 4, axes=products, in_axis=0)
    with pytest.raises(ValueError, match=r"axes=\.\.\..*trace_products"):
        structures.block((2, 2), axes={"w": 1})  # type: ignore[arg-type]
