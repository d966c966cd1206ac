"""`trace_products`: how parameters are multiplied, on what people write."""

from collections.abc import Callable
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

import jprune

X = jnp.ones((2, 8))


def shapes(**named: tuple[int, ...]) -> Any:
    return {name: jnp.ones(shape) for name, shape in named.items()}


def of(fn: Any, params: Any, *args: Any, **static: Any) -> Any:
    found = jprune.trace_products(fn, params, *args, **static)
    return [tuple(use) for use in found.uses], found.missed


def linear(p: Any, x: Any) -> Any:
    return x @ p["w"]


def heads(p: Any, x: Any) -> Any:
    """Parameters on the left, two axes contracted at the end."""
    q = jnp.einsum("dhw,bd->hbw", p["q"], x)
    return jnp.einsum("hbw,hwd->bd", q, p["out"])


def fused(p: Any, x: Any) -> Any:
    """Three kernels cut out of one."""
    q, k, v = jnp.split(p["qkv"], 3, axis=1)
    return (x @ q) * (x @ k) + x @ v


def split_heads(p: Any, x: Any) -> Any:
    """Heads are split off a kernel of two axes before it is multiplied."""
    return jnp.einsum("bd,dhw->bhw", x, p["w"].reshape(8, 3, 4))


def stacked(p: Any, x: Any) -> Any:
    def layer(x: Any, w: Any) -> Any:
        return jnp.tanh(x @ w), None

    return jax.lax.scan(layer, x, p["w"])[0]


def recurrent(p: Any, xs: Any) -> Any:
    def step(h: Any, x: Any) -> Any:
        h = jnp.tanh(x @ p["into"] + h @ p["again"])
        return h, h

    return jax.lax.scan(step, jnp.zeros(4), xs)[1]


def indexed(p: Any, x: Any) -> Any:
    return jax.lax.fori_loop(0, 3, lambda i, x: jnp.tanh(x @ p["w"][i]), x)


def ensemble(p: Any, x: Any) -> Any:
    return jax.vmap(lambda w: x @ w)(p["w"])


def tied(p: Any, x: Any) -> Any:
    return x @ p["w"] @ p["w"].T


def experts(p: Any, x: Any) -> Any:
    return jax.lax.ragged_dot(x, p["w"], jnp.array([1, 0, 1]))


def convolution(p: Any, x: Any) -> Any:
    return jax.lax.conv_general_dilated(
        x, p["w"], (1, 1), "SAME", dimension_numbers=("NHWC", "HWIO", "NHWC")
    )


def branches(p: Any, x: Any) -> Any:
    return jax.lax.cond(
        x[0, 0] > 0, lambda x: x @ p["a"], lambda x: x @ p["b"], x
    )


def remembered(p: Any, x: Any) -> Any:
    return jax.checkpoint(jax.jit(lambda x: jax.nn.relu(x @ p["w"])))(x)


def one_output(p: Any, x: Any) -> Any:
    """A cut of one output is an output, and no layer."""
    return x @ p["w"][:, :3], x @ p["w"][:, 3:]


def one_layer(p: Any, x: Any) -> Any:
    """A layer cut out, and its axis taken away by a reshape."""
    for i in range(3):
        x = x @ jax.lax.slice_in_dim(p["w"], i, i + 1).reshape(8, 8)
    return x


ALL: dict[str, tuple[Any, Any, Any, list[Any]]] = {
    "dense": (linear, shapes(w=(8, 4)), X, [("w", (0,), (1,), (), 1)]),
    "out_in": (
        lambda p, x: x @ p["w"].T,
        shapes(w=(4, 8)),
        X,
        [("w", (1,), (0,), (), 1)],
    ),
    "left": (
        lambda p, x: (p["w"] @ x.T).T,
        shapes(w=(4, 8)),
        X,
        [("w", (1,), (0,), (), 1)],
    ),
    "cast": (
        lambda p, x: x @ p["w"].astype(jnp.float32),
        {"w": jnp.ones((8, 4), jnp.bfloat16)},
        X,
        [("w", (0,), (1,), (), 1)],
    ),
    "heads": (
        heads,
        shapes(q=(8, 3, 4), out=(3, 4, 8)),
        X,
        [("out", (0, 1), (2,), (), 1), ("q", (0,), (1, 2), (), 1)],
    ),
    "fused": (fused, shapes(qkv=(8, 12)), X, [("qkv", (0,), (1,), (), 1)]),
    "split heads": (
        split_heads,
        shapes(w=(8, 12)),
        X,
        [("w", (0,), (1,), (), 1)],
    ),
    "stacked": (stacked, shapes(w=(5, 8, 8)), X, [("w", (1,), (2,), (0,), 1)]),
    "recurrent": (
        recurrent,
        shapes(into=(8, 4), again=(4, 4)),
        jnp.ones((6, 8)),
        [("again", (0,), (1,), (), 6), ("into", (0,), (1,), (), 6)],
    ),
    "one output": (
        lambda p, x: jnp.concatenate(one_output(p, x), -1),
        shapes(w=(8, 4)),
        X,
        [("w", (0,), (1,), (), 1)],
    ),
    "one layer": (
        one_layer,
        shapes(w=(3, 8, 8)),
        X,
        [("w", (1,), (2,), (0,), 1)],
    ),
    "indexed": (indexed, shapes(w=(3, 8, 8)), X, [("w", (1,), (2,), (0,), 1)]),
    # One input for all members: each makes outputs of its own.
    "ensemble": (
        ensemble,
        shapes(w=(3, 8, 4)),
        X,
        [("w", (1,), (0, 2), (), 1)],
    ),
    "tied": (
        tied,
        shapes(w=(8, 4)),
        X,
        [("w", (0,), (1,), (), 1), ("w", (1,), (0,), (), 1)],
    ),
    "experts": (experts, shapes(w=(3, 8, 4)), X, [("w", (1,), (2,), (0,), 1)]),
    "convolution": (
        convolution,
        shapes(w=(3, 3, 2, 4)),
        jnp.ones((1, 5, 5, 2)),
        [("w", (2,), (3,), (), 1)],
    ),
    "branches": (
        branches,
        shapes(a=(8, 4), b=(8, 4)),
        X,
        [("a", (0,), (1,), (), 1), ("b", (0,), (1,), (), 1)],
    ),
    "remembered": (remembered, shapes(w=(8, 4)), X, [("w", (0,), (1,), (), 1)]),
    "merged": (
        lambda p, x: x @ p["w"].transpose(1, 0, 2).reshape(8, 12),
        shapes(w=(3, 8, 4)),
        X,
        [("w", (1,), (0, 2), (), 1)],
    ),
    "a batch of products": (
        lambda p, x: jnp.einsum("gbd,gdn->gbn", x, p["w"]),
        shapes(w=(3, 8, 4)),
        jnp.ones((3, 2, 8)),
        [("w", (1,), (2,), (0,), 1)],
    ),
}


@pytest.mark.parametrize("name", ALL)
def test_axes_as_they_are_multiplied(name: str) -> None:
    fn, params, x, wanted = ALL[name]
    assert of(fn, params, x) == (wanted, {})


LINEAR = set(ALL) - {
    "experts",  # JAX cannot map over these
    "heads",
    "fused",
    "stacked",
    "recurrent",
    "indexed",
    "tied",
    "one layer",
}


@pytest.mark.sweep(4)
@pytest.mark.parametrize("name", sorted(LINEAR))
def test_an_output_sees_one_position_of_its_axes(name: str) -> None:
    """And all of those that are contracted: read off the derivatives."""
    fn, params, x, _ = ALL[name]
    x = jax.random.normal(jax.random.key(0), x.shape) + 1
    jacobian = jax.jacobian(fn)(params, x)
    for use in jprune.trace_products(fn, params, x).uses:
        shape = params[use.path].shape
        seen = np.asarray(jacobian[use.path], np.float32) != 0
        outputs = [y for y in seen.reshape(-1, *shape) if y.any()]
        assert outputs or name == "branches"
        for axis in range(len(shape)):
            others = tuple(k for k in range(len(shape)) if k != axis)
            counts = {int(y.any(others).sum()) for y in outputs}
            if axis in (*use.out_axes, *use.batch_axes):
                assert counts <= {1}
            elif axis in use.in_axes:
                assert counts <= {shape[axis]}


def norm(p: Any, x: Any) -> Any:
    return x @ (p["w"] / jnp.linalg.norm(p["w"]))


def low_rank(p: Any, x: Any) -> Any:
    return x @ (p["w"] + p["a"] @ p["b"])


MISSED: dict[str, tuple[Callable[..., Any], Any, Any, dict[str, str]]] = {
    "divided": (norm, shapes(w=(8, 4)), X, {"w": "multiplied after div"}),
    "low rank": (
        low_rank,
        shapes(w=(8, 4), a=(8, 1), b=(1, 4)),
        X,
        dict.fromkeys(("a", "b"), "multiplied after dot_general")
        | {"w": "multiplied after add"},
    ),
    "looked up": (
        lambda p, i: p["table"][i] @ p["w"],
        shapes(table=(10, 8), w=(8, 4)),
        jnp.array([1, 2]),
        {"table": "read by gather"},
    ),
    "not used": (
        lambda p, x: x @ p["w"],
        shapes(w=(8, 4), more=(2, 2), bias=(4,)),
        X,
        {"more": "not used"},
    ),
    "cut in parts": (
        lambda p, x: jnp.einsum("hbd,dhw->hbw", x, p["w"].reshape(8, 3, 4)),
        shapes(w=(8, 12)),
        jnp.ones((3, 2, 8)),
        {"w": "axis 1 is cut in parts, multiplied in different ways"},
    ),
}


@pytest.mark.parametrize("name", MISSED)
def test_what_is_not_multiplied_as_it_is(name: str) -> None:
    fn, params, x, wanted = MISSED[name]
    uses, missed = of(fn, params, x)
    assert missed == wanted
    assert not {path for path, *_ in uses} & set(wanted)


class Block(nn.Module):
    """What a Linen user writes."""

    @nn.compact
    def __call__(self, x: Any, flag: bool = True) -> Any:
        x = nn.Embed(10, 8, name="embed")(x)
        x = nn.MultiHeadDotProductAttention(2, name="attention")(x, x)
        x = nn.LayerNorm()(x)
        return nn.Dense(3, dtype=jnp.bfloat16, name="head")(x) if flag else x


@pytest.mark.slow
def test_linen() -> None:
    x = jnp.zeros((2, 5), int)
    params = Block().init(jax.random.key(0), x)
    found = jprune.trace_products(Block().apply, params, x, flag=True)
    axes = {use.path.split("/", 1)[1]: use[1:4] for use in found.uses}
    into = {
        f"attention/{n}/kernel": ((0,), (1, 2), ()) for n in ("key", "query")
    }
    assert axes == into | {
        "attention/value/kernel": ((0,), (1, 2), ()),
        "attention/out/kernel": ((0, 1), (2,), ()),
        "head/kernel": ((0,), (1,), ()),
    }
    assert found.missed == {"params/embed/embedding": "read by gather"}
    less = jprune.trace_products(Block().apply, params, x, flag=False)
    assert "params/head/kernel" in less.missed


def test_nnx() -> None:
    model = nnx.Sequential(
        nnx.Linear(8, 4, rngs=nnx.Rngs(0)),
        nnx.relu,
        nnx.Linear(4, 2, rngs=nnx.Rngs(1)),
    )
    graph, state = nnx.split(model)
    found = jprune.trace_products(lambda s, x: nnx.merge(graph, s)(x), state, X)
    assert [use[1:] for use in found.uses] == [((0,), (1,), (), 1)] * 2


def test_it_prints_and_is_data() -> None:
    found = jprune.trace_products(low_rank, MISSED["low rank"][1], X)
    assert "missed: a: multiplied after dot_general" in str(found)
    table = str(jprune.trace_products(heads, ALL["heads"][1], X))
    assert [line.split() for line in table.splitlines()[2:]] == [
        ["out", "0,", "1", "2", "1"],
        ["q", "0", "1,", "2", "1"],
    ]


def test_bad_calls() -> None:
    with pytest.raises(
        ValueError, match=r"`trace_products.*fn must be a function"
    ):
        jprune.trace_products(3, {}, X)
    with pytest.raises(
        ValueError, match=r"`trace_products.*mask.*holds arrays"
    ):
        jprune.trace_products(linear, shapes(w=(8, 4)), X, mask=X)
    shapes_alone = jax.eval_shape(lambda: shapes(w=(8, 4)))
    assert of(linear, shapes_alone, X) == of(linear, shapes(w=(8, 4)), X)
