"""Criteria that look at inputs: activation, curvature, gauss_newton."""

import pickle
from collections.abc import Iterator
from typing import Any

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import linen as nn
from jax import lax

import jprune
from jprune import criteria, structures

pytestmark = pytest.mark.usefixtures("wide")

RNG = np.random.default_rng(0)
SHAPES = {"w": (5, 6), "b": (6,), "v": (6, 3)}
PARAMS = {k: RNG.standard_normal(s) for k, s in SHAPES.items()}
X = RNG.standard_normal((40, 5))
X[:, 2] = 0  # never active


@pytest.fixture
def wide() -> Iterator[None]:
    with jax.enable_x64(True):
        yield


def mlp(p: Any, x: Any) -> Any:
    return jax.nn.relu(x @ p["w"] + p["b"]) @ p["v"]


def arrays() -> Any:
    return jax.tree.map(jnp.asarray, PARAMS)


def stats_of(fn: Any, params: Any, *parts: Any) -> Any:
    return jprune.calibrate(fn, params, [(jnp.asarray(x),) for x in parts])


def halves() -> Any:
    return stats_of(mlp, arrays(), X[:24], X[24:])


def hidden() -> np.ndarray:
    return np.maximum(X @ PARAMS["w"] + PARAMS["b"], 0)


def scores(criterion: criteria.Criterion, params: Any) -> Any:
    return criterion.score(params, criterion.init(params), None, None)


def unit_scores(
    criterion: criteria.Criterion, params: Any, structure: Any
) -> list[Any]:
    assert criterion.of_units is not None
    chosen = structure.where(params)
    mine = jax.tree.map(
        lambda x, yes: x if yes else optax.MaskedNode(), params, chosen
    )
    return criterion.of_units(mine, criterion.init(mine), structure.members)


def kernels(params: Any) -> Any:
    return {**params, "b": optax.MaskedNode()}


def replaced(x: np.ndarray, damping: float) -> np.ndarray:
    """``1 / [H^-1]_jj``, by NumPy."""
    found = np.zeros(x.shape[1])
    on = (x**2).sum(0) > 1e-9
    gram = x.T @ x
    gram += damping * np.diag(gram).mean() * np.eye(len(gram))
    found[on] = 1 / np.diag(np.linalg.inv(gram[np.ix_(on, on)]))
    return found


def test_activation_of_a_perceptron() -> None:
    found = scores(criteria.activation(halves()), kernels(arrays()))
    for name, x in (("w", X), ("v", hidden())):
        wanted = abs(PARAMS[name]) * np.linalg.norm(x, axis=0)[:, None]
        np.testing.assert_allclose(found[name], wanted, rtol=1e-12)


def test_curvature_of_a_perceptron() -> None:
    """Inputs are centred where a bias takes up the mean."""
    found = scores(criteria.curvature(halves(), 0.1), kernels(arrays()))
    for name, x in (("w", X - X.mean(0)), ("v", hidden())):
        wanted = PARAMS[name] ** 2 * replaced(x, 0.1)[:, None]
        np.testing.assert_allclose(found[name], wanted, rtol=1e-9)


def test_curvature_is_what_repair_can_not_mend() -> None:
    x, w = X[:, [0, 1, 3, 4]], PARAMS["w"][:4, :1]
    stats = stats_of(lambda w, x: x @ w, jnp.asarray(w), x)
    found = scores(criteria.curvature(stats, 0.0), jnp.asarray(w))
    for j in range(4):
        rest = np.delete(x, j, 1)
        error = np.linalg.lstsq(rest, x @ w, rcond=None)[1]
        np.testing.assert_allclose(found[j], error, rtol=1e-9)


@pytest.mark.parametrize("name", ["activation", "curvature"])
def test_what_was_never_active_goes_first(name: str) -> None:
    criterion = getattr(criteria, name)(halves())
    masks = jprune.find_masks(
        arrays(), 1 / 5, criterion=criterion, where=r"^w$"
    )
    np.testing.assert_array_equal(
        masks["w"], (X != 0).any(0, keepdims=True).T.repeat(6, 1)
    )


def test_wanda_as_published() -> None:
    """Exact: rows are outputs, each keeps half of its inputs."""
    w = jnp.array([[4.0, 0, 1, 1], [3, 2, 1, 3], [3, 1, 0, 2]])
    stats = stats_of(lambda w, x: x @ w.T, w, np.diag([1.0, 2, 8, 3]))
    criterion = criteria.activation(stats)
    np.testing.assert_allclose(
        scores(criterion, w), [[4, 0, 8, 3], [3, 4, 8, 9], [3, 2, 0, 6]]
    )
    masks = jprune.find_masks(
        w,
        0.5,
        criterion=criterion,
        structure=structures.fan_in(in_axis=-1, out_axis=-2),
    )
    np.testing.assert_array_equal(
        jnp.where(masks, w, 0), [[4, 0, 1, 0], [0, 0, 1, 3], [3, 0, 0, 2]]
    )


def convolution(p: Any, x: Any) -> Any:
    dims = ("NHWC", "HWIO", "NHWC")
    h = lax.conv_general_dilated(
        x, p["k"], (1, 1), "VALID", dimension_numbers=dims
    )
    return jax.nn.relu(h).reshape(len(x), -1) @ p["v"]


def test_convolution_and_its_channels() -> None:
    x = RNG.standard_normal((7, 4, 4, 2))
    p = {
        "k": jnp.asarray(RNG.standard_normal((2, 3, 2, 5))),
        "v": jnp.asarray(RNG.standard_normal((3 * 2 * 5, 4))),
    }
    patches = np.lib.stride_tricks.sliding_window_view(x, (2, 3), (1, 2))
    norms = np.sqrt((patches**2).sum((0, 1, 2)))  # [in, *window]
    criterion = criteria.activation(stats_of(convolution, p, x))
    found = scores(criterion, p)
    wanted = abs(p["k"]) * norms.transpose(1, 2, 0)[..., None]
    np.testing.assert_allclose(found["k"], wanted, rtol=1e-12)
    graph = jprune.trace_units(convolution, p, x)
    (units,) = unit_scores(criterion, p, jprune.units(graph))
    rows = found["v"].reshape(6, 5, 4)  # positions, channels
    wanted = np.sqrt((np.asarray(rows) ** 2).sum((0, 2)))
    np.testing.assert_allclose(units, wanted[None], rtol=1e-12)


def test_units_are_scored_by_what_reads_them() -> None:
    p, h = arrays(), hidden()
    structure = jprune.units(jprune.trace_units(mlp, p, X))
    power = np.linalg.norm(h, axis=0)
    activation = power * np.linalg.norm(PARAMS["v"], axis=1)
    curvature = (PARAMS["v"] ** 2).sum(1) * replaced(h, 0.01)
    for criterion, wanted in (
        (criteria.activation(halves()), activation),
        (criteria.curvature(halves()), curvature),
    ):
        (units,) = unit_scores(criterion, p, structure)
        np.testing.assert_allclose(units, wanted[None], rtol=1e-9)
        masks = jprune.find_masks(
            p, 0.5, criterion=criterion, structure=structure
        )
        np.testing.assert_array_equal(masks["b"], wanted > np.sort(wanted)[2])


def test_inputs_of_one_weight_in_two_places_add() -> None:
    def twice(w: Any, x: Any) -> Any:
        return jnp.sin(x @ w) @ w, x @ w.T  # the last: along the other axis

    w = jnp.asarray(RNG.standard_normal((5, 5)))
    found = scores(criteria.activation(stats_of(twice, w, X)), w)
    rows = (X**2).sum(0) + (np.sin(X @ np.asarray(w)) ** 2).sum(0)
    wanted = abs(w) * np.sqrt(rows[:, None] + (X**2).sum(0))
    np.testing.assert_allclose(found, wanted, rtol=1e-12)


def test_parts_of_a_weight_have_inputs_of_their_own() -> None:
    def fused(w: Any, x: Any) -> Any:
        a, b = jnp.split(w, 2, axis=1)
        return jnp.sin(x @ a) @ b

    w = jnp.asarray(RNG.standard_normal((5, 10)))
    found = scores(criteria.activation(stats_of(fused, w, X)), w)
    inner = np.sin(X @ np.asarray(w)[:, :5])
    norms = [np.linalg.norm(x, axis=0)[:, None] for x in (X, inner)]
    wanted = abs(w) * np.repeat(np.concatenate(norms, 1), 5, 1)
    np.testing.assert_allclose(found, wanted, rtol=1e-12)


def test_gauss_newton_of_one_output_is_exact() -> None:
    """Of samples that share no weight, whatever the signs."""
    d, w = np.array([3.0, 0.5, -2]), np.array([[1.0], [4], [0.25]])
    for batch in (jnp.diag(d), (jnp.diag(d),)):
        criterion = criteria.gauss_newton(
            lambda w, x: x @ w, jnp.asarray(w), batch, samples=3
        )
        np.testing.assert_allclose(
            scores(criterion, jnp.asarray(w)), abs(d[:, None] * w), rtol=1e-12
        )


def test_gauss_newton_adds_over_samples_and_outputs() -> None:
    """Of a linear model the mean is that of `activation`."""
    w = jnp.asarray(PARAMS["w"])
    found = scores(
        criteria.gauss_newton(lambda w, x: x @ w, w, X, samples=4000), w
    )
    wanted = abs(w) * np.linalg.norm(X, axis=0)[:, None]
    np.testing.assert_allclose(found, wanted, rtol=0.06)
    other = criteria.gauss_newton(lambda w, x: x @ w, w, X, key=1)
    again = criteria.gauss_newton(
        lambda w, x: x @ w, w, X, key=jax.random.key(1)
    )
    np.testing.assert_array_equal(scores(other, w), scores(again, w))


@pytest.mark.slow
def test_gauss_newton_of_units_is_that_of_a_gate() -> None:
    """What several read is summed up with its signs, then squared."""

    def both(p: Any, x: Any) -> Any:
        h = jnp.tanh(x @ p["w"] + p["b"])
        return h @ p["v"] - 2 * h @ p["u"]

    p = arrays() | {"u": jnp.asarray(RNG.standard_normal((6, 1)))}
    p["v"] = p["v"][:, :1]
    x = jnp.asarray(X[:1])  # one output: no sign matters
    criterion = criteria.gauss_newton(both, p, x, samples=2)
    structure = jprune.units(jprune.trace_units(both, p, x))
    (units,) = unit_scores(criterion, p, structure)
    h = np.tanh(X[:1] @ PARAMS["w"] + PARAMS["b"])[0]
    wanted = abs(h * (PARAMS["v"][:, 0] - 2 * np.asarray(p["u"])[:, 0]))
    np.testing.assert_allclose(units, wanted[None], rtol=1e-12)


LAYERS = {
    "up": RNG.standard_normal((3, 4, 6)),
    "b": RNG.standard_normal((3, 6)),
    "down": RNG.standard_normal((3, 6, 4)) / 4,
}


def layer(x: Any, p: Any) -> Any:
    return x + jnp.tanh(x @ p["up"] + p["b"]) @ p["down"]


def scanned(p: Any, x: Any) -> Any:
    return lax.scan(lambda x, p: (layer(x, p), None), x, p)[0]


def unrolled(p: Any, x: Any) -> Any:
    for one in p:
        x = layer(x, one)
    return x


@pytest.mark.slow
@pytest.mark.parametrize("name", ["activation", "curvature", "gauss_newton"])
def test_a_scan_is_its_layers(name: str) -> None:
    x = jnp.asarray(X[:, :4])
    stack = jax.tree.map(jnp.asarray, LAYERS)
    alone = [jax.tree.map(lambda w, i=i: w[i], stack) for i in range(3)]
    found = []
    for fn, p in ((scanned, stack), (unrolled, alone)):
        if name == "gauss_newton":
            criterion = criteria.gauss_newton(fn, p, x)
        else:
            criterion = getattr(criteria, name)(stats_of(fn, p, x))
        inner = jprune.units(jprune.trace_units(fn, p, x), where=r"up\[")
        units = unit_scores(criterion, p, inner)
        rest = [kernels(one) for one in p] if type(p) is list else kernels(p)
        found.append((np.concatenate(units), scores(criterion, rest)))
    np.testing.assert_allclose(found[0][0], found[1][0], rtol=1e-9)
    for i in range(3):
        for leaf in ("up", "down"):
            np.testing.assert_allclose(
                found[0][1][leaf][i], found[1][1][i][leaf], rtol=1e-9
            )


def made(name: str, fn: Any, params: Any, x: Any) -> criteria.Criterion:
    if name == "gauss_newton":
        return criteria.gauss_newton(fn, params, x)
    return getattr(criteria, name)(stats_of(fn, params, x))


@pytest.mark.sweep(4)
@pytest.mark.parametrize("name", ["activation", "curvature", "gauss_newton"])
def test_in_training_pickled_and_under_jit(
    name: str, compilations: list[str]
) -> None:
    p = arrays()
    criterion = made(name, mlp, p, X)
    again = pickle.loads(pickle.dumps(criterion))
    assert repr(criterion).startswith(f"{name}(")
    assert repr(again) == repr(criterion)
    for structure in (
        structures.unstructured(),
        jprune.units(jprune.trace_units(mlp, p, X)),
    ):
        wanted = jprune.find_masks(
            p, 0.5, criterion=criterion, structure=structure
        )
        found = jax.jit(
            lambda p, s=structure: jprune.find_masks(
                p, 0.5, criterion=again, structure=s
            )
        )(p)
        tx = optax.chain(
            optax.sgd(0.1),
            jprune.prune(0.5, criterion=criterion, structure=structure),
        )
        step = jax.jit(tx.update, donate_argnums=1)
        new, state = p, tx.init(p)
        for _ in range(3):
            compilations.clear()
            updates, state = step(jax.tree.map(jnp.sin, new), state, new)
            new = optax.apply_updates(new, updates)
        assert not compilations
        for masks in (found, jprune.get_masks(state)):
            for leaf, mask in wanted.items():
                if not isinstance(mask, optax.MaskedNode):
                    np.testing.assert_array_equal(masks[leaf], mask)
        same = optax.tree.map_params(tx.init, lambda x: x, state)
        chex.assert_trees_all_equal_structs(same, state)


class Attention(nn.Module):
    @nn.compact
    def __call__(self, x: Any) -> Any:
        return nn.Dense(3)(nn.MultiHeadDotProductAttention(2)(x))


@pytest.mark.slow
@pytest.mark.parametrize("name", ["activation", "curvature", "gauss_newton"])
def test_attention_of_flax(name: str) -> None:
    """Statistics of variables serve for their params; heads are units."""
    model, x = Attention(), jnp.asarray(RNG.standard_normal((2, 5, 4)))
    variables = model.init(jax.random.key(0), x)
    criterion = made(name, model.apply, variables, x)
    graph = jprune.trace_units(model.apply, variables, x)
    params = variables["params"]
    masks = jprune.find_masks(params, 0.5, criterion=criterion)
    assert float(jprune.measure_sparsity(masks)) == pytest.approx(0.5, abs=0.02)
    with pytest.raises(ValueError, match=r"reads the units of '.*query/kernel"):
        jprune.find_masks(
            params, 0.5, criterion=criterion, structure=jprune.units(graph)
        )
    out = jprune.units(graph, where=r"out/kernel\[[01]\]")
    heads = jprune.find_masks(params, 0.5, criterion=criterion, structure=out)
    if name != "activation":
        return
    chosen = jax.tree.map(
        lambda mask, x: mask if isinstance(mask, optax.MaskedNode) else x,
        masks,
        params,
        is_leaf=lambda x: isinstance(x, optax.MaskedNode),
    )
    own = "MultiHeadDotProductAttention_0"
    of_out = np.asarray(scores(criterion, chosen)[own]["out"]["kernel"])
    power = (of_out**2).sum((1, 2))  # of each head
    kept = heads[own]["out"]["kernel"].any((1, 2))
    np.testing.assert_array_equal(kept, power == power.max())


BAD: dict[str, Any] = {
    r"`activation\(stats\)` must be what `jprune.calibrate\(fn, params, "
    r"batches\)` returned, got <function mlp>": lambda: criteria.activation(
        mlp  # type: ignore[arg-type]
    ),
    r"`curvature\(damping=...\)` must be a number >= 0, got -1": lambda: (
        criteria.curvature(halves(), -1.0)
    ),
    r"damping=0.0\)`: the Gram of 'w' is singular": lambda: criteria.curvature(
        stats_of(mlp, arrays(), X[:3]), 0.0
    ),
    r"'b' has no statistics: `calibrate` saw no such parameter; `where=` can": (
        lambda: scores(criteria.activation(halves()), arrays())
    ),
    r"'n' has no statistics: multiplied after div; `where=`": lambda: scores(
        criteria.activation(
            stats_of(
                lambda p, x: x @ p["w"] @ (p["n"] / 2.0),
                {"w": jnp.ones((5, 6)), "n": jnp.ones((6, 2))},
                X,
            )
        ),
        {"w": jnp.ones((5, 6)), "n": jnp.ones((6, 2))},
    ),
    r"'w' of shape \(4, 6\) is not of the shape that `calibrate` saw": lambda: (
        criteria.activation(halves()).init({"w": jnp.ones((4, 6))})
    ),
    r"fn must be a function, got 3": lambda: criteria.gauss_newton(
        3,  # type: ignore[arg-type]
        arrays(),
        X,
    ),
    r"fn does not take these parameters": lambda: criteria.gauss_newton(
        mlp, arrays(), X[:, :4]
    ),
    r"must return something floating": lambda: criteria.gauss_newton(
        lambda p, x: mlp(p, x) > 0, arrays(), X
    ),
    r"`gauss_newton\(samples=...\)`": lambda: criteria.gauss_newton(
        mlp, arrays(), X, samples=0
    ),
    r"with respect to 'v' has NaN": lambda: criteria.gauss_newton(
        mlp, arrays(), X * np.nan
    ),
    r"'w' of shape \(4, 6\) was of shape \(5, 6\) among": lambda: (
        criteria.gauss_newton(mlp, arrays(), X).init({"w": jnp.ones((4, 6))})
    ),
}


@pytest.mark.parametrize("message", BAD)
def test_bad_input_is_refused(message: str) -> None:
    with pytest.raises(ValueError, match=message):
        BAD[message]()
