"""``small.freeze``: the plain program, and nothing that it was made of."""

import gc
import re
from types import ModuleType
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from compaction_models import MODELS
from jax import export

import jprune


def fn(params: Any, x: jax.Array) -> jax.Array:
    def layer(x: Any, p: Any) -> Any:
        return x + jax.nn.gelu(x @ p["w"] + p["b"]) @ p["v"], None

    return jax.lax.scan(layer, x, params["layers"])[0] @ params["out"]


@pytest.fixture(scope="module")
def small() -> Any:
    rng = np.random.default_rng(0)
    shapes = {"w": (3, 5, 34), "b": (3, 34), "v": (3, 34, 5)}
    layers = {n: jnp.asarray(rng.normal(size=s)) for n, s in shapes.items()}
    params = {"layers": layers, "out": jnp.ones((5, 2))}
    structure = jprune.units(jprune.trace_units(fn, params, X))
    masks = jprune.find_masks(params, 0.5, structure=structure)
    return jprune.compact(fn, params, X, masks=masks)


X = jax.random.normal(jax.random.key(0), (2, 5))


@pytest.mark.sweep(2)
def test_it_computes_the_same(small: Any) -> None:
    frozen = small.freeze(X)
    np.testing.assert_allclose(
        frozen(small.params, X), small.fn(small.params, X), rtol=1e-5
    )
    grads = [
        jax.grad(lambda p, f=f: jnp.sum(f(p, X) ** 2))(small.params)
        for f in (frozen, small.fn)
    ]
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-3, atol=1e-5),
        *grads,
    )


def test_nothing_dense_is_in_the_program(small: Any) -> None:
    frozen = small.freeze(jax.ShapeDtypeStruct(X.shape, X.dtype))
    shapes = jax.tree.map(np.shape, small.params)
    assert shapes["layers"]["w"] == (3, 5, 17)
    jaxpr = str(jax.make_jaxpr(frozen)(small.params, X))
    text = frozen.lower(small.params, X).as_text()
    assert "17" in jaxpr
    assert not re.search(r"\b34\b", jaxpr + text.replace("x", " "))
    assert "jprune" not in jaxpr + text


def test_nothing_dense_is_held(small: Any) -> None:
    """Whatever can be reached from the function, modules left out."""
    seen: set[int] = set()
    todo: list[Any] = [small.freeze(X)]
    while todo:
        one = todo.pop()
        if id(one) in seen or isinstance(one, ModuleType | type):
            continue
        seen.add(id(one))
        if isinstance(one, jax.Array | np.ndarray):
            assert 34 not in one.shape
            assert one is not small.params["layers"]["w"]
            continue
        if isinstance(one, dict) and one.get("__name__"):
            continue  # globals of a module
        todo += gc.get_referents(one)
    assert len(seen) > 100


@pytest.mark.slow
@pytest.mark.parametrize("name", ["convolutional", "residual"])
def test_models(name: str) -> None:
    model = MODELS[name]()
    graph = jprune.trace_units(model.fn, model.params, *model.args)
    masks = jprune.find_masks(model.params, 0.5, structure=jprune.units(graph))
    small = jprune.compact(model.fn, model.params, *model.args, masks=masks)
    frozen = small.freeze(*model.args)
    np.testing.assert_allclose(
        frozen(small.params, *model.args),
        small.fn(small.params, *model.args),
        rtol=1e-4,
        atol=1e-6,
    )


def test_other_shapes_are_refused(small: Any) -> None:
    frozen = small.freeze(X)
    with pytest.raises(ValueError, match=r"args\[0\] must be float32 of shape"):
        frozen(small.params, jnp.ones((3, 5)))
    wrong = {**small.params, "out": jnp.ones((5, 3))}
    with pytest.raises(ValueError, match="params, 'out', must be float32"):
        frozen(wrong, X)
    with pytest.raises(ValueError, match="the function takes"):
        frozen(small.params)
    any_size = jax.ShapeDtypeStruct(export.symbolic_shape("b, 5"), X.dtype)
    with pytest.raises(ValueError, match=r"`jprune\.export\.save` keeps"):
        small.freeze(any_size)
