"""`one_shot` and `refit`: counts, errors and what is repaired, in float64."""

import logging
from collections.abc import Iterator
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax import lax
from jax.sharding import AxisType, NamedSharding, PartitionSpec

import jprune
from jprune import (
    allocations,
    calibrate,
    grids,
    one_shot,
    refit,
    solvers,
    structures,
)
from jprune.calibration import repair
from jprune.calibration.pruner import Pruner


@pytest.fixture(autouse=True)
def float64() -> Iterator[None]:
    with jax.enable_x64(True):
        yield


def numbers(*shape: int, seed: int = 0) -> Any:
    return np.random.default_rng(seed).standard_normal(shape)


def tree(**shapes: tuple[int, ...]) -> Any:
    return {
        name: jnp.asarray(numbers(*shape, seed=i)) / shape[0] ** 0.5
        for i, (name, shape) in enumerate(shapes.items())
    }


def correlated(rows: int, many: int, seed: int = 0) -> Any:
    return numbers(rows, many, seed=seed) @ numbers(many, many, seed=99)


def mlp(p: Any, x: Any) -> Any:
    h = jax.nn.relu(x @ p["w"] + p["b"])
    return jax.nn.relu(h @ p["v"] + p["c"]) @ p["u"]


MLP = {"w": (8, 12), "b": (12,), "v": (12, 8), "c": (8,), "u": (8, 4)}
X = correlated(60, 8)


def lost(masks: Any) -> dict[str, int]:
    return {
        name: int((~mask).sum())
        for name, mask in masks.items()
        if not isinstance(mask, optax.MaskedNode)
    }


def same(a: Any, b: Any, atol: float = 1e-9) -> None:
    pairs = zip(*map(jax.tree.leaves, (a, b)), strict=True)
    for x, y in pairs:
        np.testing.assert_allclose(x, y, atol=atol)


def zero_where_masked(result: Any) -> None:
    for name, mask in result.masks.items():
        if not isinstance(mask, optax.MaskedNode):
            assert not np.asarray(result.params[name])[~np.asarray(mask)].any()


AXES: dict[str, Any] = {"in_axis": -2, "out_axis": -1}
STRUCTURES = {
    "unstructured": structures.unstructured(),
    "fan_in": structures.fan_in(**AXES),
    "n_m": structures.n_m(2, 4, **AXES),
    "group": structures.group(2, **AXES),
    "block": structures.block((2, 2), **AXES),
    "channel": structures.channel(0),
}
ALLOCATIONS = {
    "uniform": allocations.uniform(),
    "erdos_renyi": allocations.erdos_renyi(),
    "global": allocations.global_ranking(),
    "given": allocations.given({"w": 0.5, "v": 1.0}),
}
SOLVERS = {
    "mask_only": solvers.mask_only(),
    "sparsegpt": solvers.sparsegpt(block=4),
    "admm": solvers.admm(),
}


def case(structure: str, allocation: str, solver: str, quick: bool) -> Any:
    marks = () if quick else pytest.mark.slow
    return pytest.param(structure, allocation, solver, marks=marks)


CASES = [
    case(
        structure,
        allocation,
        solver,
        (structure, allocation, solver)
        in (
            ("unstructured", "erdos_renyi", "sparsegpt"),
            ("n_m", "uniform", "admm"),
        ),
    )
    for structure in STRUCTURES
    for allocation in ALLOCATIONS
    for solver in SOLVERS
    if not (structure in ("fan_in", "n_m") and allocation == "global")
    and not (structure == "n_m" and allocation != "uniform")
]


@pytest.mark.sweep(2)
@pytest.mark.parametrize(("structure", "allocation", "solver"), CASES)
def test_counts_are_exact(structure: str, allocation: str, solver: str) -> None:
    """As many go from each parameter as without data."""
    params = tree(**MLP)
    how: dict[str, Any] = {
        "structure": STRUCTURES[structure],
        "allocation": ALLOCATIONS[allocation],
    }
    result = one_shot(mlp, params, [X], 0.5, solver=SOLVERS[solver], **how)
    wanted = jprune.find_masks(params, 0.5, **how)
    assert lost(result.masks) == lost(wanted)
    zero_where_masked(result)
    assert all(np.isfinite(x).all() for x in result.params.values())
    for name, mask in result.masks.items():
        if structure == "n_m" and name in "wvu":
            kept = np.asarray(mask).reshape(-1, 4, mask.shape[-1]).sum(1)
            assert (kept == 2).all()
        if structure == "fan_in" and name in "wvu":
            assert len(set(np.asarray(mask).sum(0))) == 1


@pytest.mark.slow
def test_channels_by_obs() -> None:
    params = tree(**MLP)
    result = one_shot(
        mlp,
        params,
        [X],
        0.5,
        solver=solvers.obs(),
        structure=structures.channel(0),
    )
    assert lost(result.masks) == {"w": 48, "v": 48, "u": 16}
    zero_where_masked(result)
    assert all(after < before for before, after in result.errors.values())


class Recorded(Pruner):
    outputs: Any = None

    def program(self, program: Any, inputs: Any) -> Any:
        found = super().program(program, inputs)
        Recorded.outputs = found  # the outermost comes last
        return found


def stacked(p: Any, x: Any) -> Any:
    def layer(x: Any, w: Any) -> Any:
        return x + jnp.tanh(x @ w[0] + w[1]), None

    return lax.scan(layer, x, (p["w"], p["b"]))[0] @ p["v"]


def unrolled(p: Any, x: Any) -> Any:
    for i in range(p["w"].shape[0]):
        x = x + jnp.tanh(x @ p["w"][i] + p["b"][i])
    return x @ p["v"]


STACKED = {"w": (3, 8, 8), "b": (3, 8), "v": (8, 4)}


@pytest.mark.slow
@pytest.mark.parametrize(
    ("fn", "shapes"),
    [(mlp, MLP), (stacked, STACKED)],
    ids=["mlp", "stacked"],
)
@pytest.mark.parametrize("targets", ["own", "dense"])
def test_the_walk_has_the_outputs_of_the_pruned_model(
    fn: Any, shapes: Any, targets: str, monkeypatch: Any
) -> None:
    monkeypatch.setattr(repair, "Pruner", Recorded)
    params = tree(**shapes)
    result = one_shot(fn, params, [X[:30], X[30:]], 0.5, targets=targets)
    (out,) = Recorded.outputs
    for own, x in zip(out.own, (X[:30], X[30:]), strict=True):
        np.testing.assert_allclose(own, fn(result.params, x), atol=1e-9)


@pytest.mark.slow
@pytest.mark.parametrize(
    "solver",
    [
        "sparsegpt",
        pytest.param("admm", marks=pytest.mark.slow),
        pytest.param("mask_only", marks=pytest.mark.slow),
    ],
)
def test_a_scan_is_pruned_as_its_layers_are(solver: str) -> None:
    params = tree(**STACKED)
    how: dict[str, Any] = {
        "solver": SOLVERS[solver],
        "structure": structures.fan_in(batch_axis=(0,), **AXES),
        "where": "w",
    }
    a = one_shot(stacked, params, [X], 0.5, **how)
    b = one_shot(unrolled, params, [X], 0.5, **how)
    np.testing.assert_array_equal(a.masks["w"], b.masks["w"])
    same(a.params, b.params)
    np.testing.assert_allclose(a.errors["w"], b.errors["w"], atol=1e-9)
    assert lost(a.masks) == {"w": 96}
    np.testing.assert_array_equal(a.params["v"], params["v"])


@pytest.mark.slow
def test_two_batches_are_one() -> None:
    params = tree(**MLP)
    whole = one_shot(mlp, params, [X], 0.5)
    parts = one_shot(mlp, params, iter([X[:30], X[30:]]), 0.5)
    jax.tree.map(np.testing.assert_array_equal, whole.masks, parts.masks)
    same(whole.params, parts.params, 1e-7)
    keep = np.arange(60) % 3 > 0
    some = one_shot(mlp, params, [X], 0.5, weights=lambda x: keep)
    same(some.params, one_shot(mlp, params, [X[keep]], 0.5).params, 1e-7)


def deep(p: Any, x: Any) -> Any:
    for w in p:
        x = jax.nn.relu(x @ w)
    return x


@pytest.mark.slow
def test_dense_targets_are_no_worse_at_the_output() -> None:
    found: dict[str, list[float]] = {"own": [], "dense": []}
    for seed in range(5):
        params = [
            jnp.asarray(numbers(16, 16, seed=10 * seed + i)) / 8**0.5
            for i in range(5)
        ]
        x = correlated(300, 16, seed)
        for targets, losses in found.items():
            new = one_shot(deep, params, [x], 0.6, targets=targets).params
            out = deep(params, x)
            losses.append(float(np.mean((deep(new, x) - out) ** 2 / out.var())))
    assert np.mean(found["dense"]) < np.mean(found["own"])


def test_errors_are_those_of_the_outputs() -> None:
    """Of products, on inputs as they are by then, with the bias moved."""
    params = tree(**MLP)
    result = one_shot(mlp, params, [X], 0.5, targets="own")
    now, x = result.params, X
    for w, b in (("w", "b"), ("v", "c"), ("u", None)):
        power = np.sum((x @ params[w]) ** 2)
        alone = np.where(result.masks[w], params[w], 0)
        before = np.sum((x @ (alone - params[w])) ** 2) / power
        change = x @ (now[w] - params[w])
        if b is not None:
            change = change + np.asarray(now[b] - params[b])
        after = np.sum(change**2) / power
        np.testing.assert_allclose(result.errors[w], (before, after))
        assert after < before
        out = x @ now[w] + (0 if b is None else now[b])
        x = np.maximum(out, 0)


@pytest.mark.slow
def test_errors_of_dense_targets() -> None:
    params = tree(**MLP)
    result = one_shot(mlp, params, [X], 0.5, targets="dense")
    new = result.params
    x = np.maximum(X @ new["w"] + new["b"], 0)
    y = np.maximum(X @ params["w"] + params["b"], 0)
    change = x @ new["v"] + np.asarray(new["c"] - params["c"]) - y @ params["v"]
    power = np.sum((y @ params["v"]) ** 2)
    after = np.sum(change**2) / power
    np.testing.assert_allclose(result.errors["v"][1], after, rtol=1e-6)


def test_means_of_outputs_stay_where_there_is_a_bias() -> None:
    params = tree(**MLP)
    x = X + 3.0
    result = one_shot(mlp, params, [x], 0.5, where="w")
    before = x @ params["w"] + params["b"]
    after = x @ result.params["w"] + result.params["b"]
    np.testing.assert_allclose(after.mean(0), before.mean(0))
    assert not np.allclose(result.params["b"], params["b"])
    for name in ("v", "c", "u"):
        np.testing.assert_array_equal(result.params[name], params[name])


@pytest.mark.slow
def test_wanda_is_a_criterion_and_no_repair() -> None:
    params = tree(**MLP)
    stats = calibrate(mlp, params, [X])

    def activation(params: Any) -> Any:
        found = jax.tree.map(jnp.zeros_like, params)
        for site in stats.sites:
            power = jnp.diagonal(
                stats.moments[site.moments].gram, axis1=-2, axis2=-1
            )
            scores = jnp.abs(site.matrix(params[site.path])) * jnp.sqrt(
                power[..., None]
            )
            found[site.path] = site.write(params[site.path], scores)
        return jax.tree.map(
            lambda p, x: x if hasattr(p, "shape") else p, params, found
        )

    how: dict[str, Any] = {
        "criterion": jprune.criteria.custom(activation),
        "structure": structures.fan_in(),
        "where": "w|v|u",
    }
    how["allocation"] = allocations.uniform()
    masks = jprune.find_masks(params, 0.5, **how)
    result = one_shot(mlp, params, [X], 0.5, solver=solvers.mask_only(), **how)
    jax.tree.map(np.testing.assert_array_equal, result.masks, masks)
    same(result.params, jprune.apply_masks(params, masks), 0)
    scores = np.abs(params["w"]) * np.linalg.norm(X, axis=0)[:, None]
    best = np.argsort(-scores, 0)[:4]
    wanted = np.zeros((8, 12), bool)
    np.put_along_axis(wanted, best, True, 0)
    np.testing.assert_array_equal(masks["w"], wanted)
    for before, after in result.errors.values():
        assert before == after


@pytest.mark.slow
def test_refit_moves_a_bias_and_keeps_a_masked_one() -> None:
    params, x = tree(w=(8, 6), b=(6,)), X + 2.0
    fn = lambda p, x: x @ p["w"] + p["b"]
    stats = calibrate(fn, params, [x])
    masks = {
        "w": jnp.asarray(numbers(8, 6) > 0),
        "b": jnp.arange(6) != 2,
    }
    new = refit(params, masks, stats, ridge=0)
    out = np.asarray(x @ params["w"])
    for n in range(6):
        on = np.asarray(masks["w"])[:, n]
        rows = x[:, on]
        if n != 2:
            rows = np.concatenate([rows, np.ones((60, 1))], 1)
        fit = np.linalg.lstsq(rows, out[:, n], rcond=None)[0]
        np.testing.assert_allclose(new["w"][on, n], fit[: on.sum()], atol=1e-6)
        if n != 2:
            moved = params["b"][n] + fit[-1]
            np.testing.assert_allclose(new["b"][n], moved, atol=1e-6)
    assert new["b"][2] == 0
    assert not np.asarray(new["w"])[~np.asarray(masks["w"])].any()


def test_without_a_bias_the_gram_is_not_centred() -> None:
    params, x = tree(w=(8, 6)), X + 2.0
    fn = lambda p, x: x @ p["w"]
    mask = np.asarray(numbers(8, 6) > 0)
    masks = {"w": jnp.asarray(mask)}
    new = refit(params, masks, calibrate(fn, params, [x]), ridge=0)["w"]
    for n in range(6):
        on = mask[:, n]
        fit = np.linalg.lstsq(x[:, on], x @ params["w"][:, n], rcond=None)[0]
        np.testing.assert_allclose(new[on, n], fit, atol=1e-6)


@pytest.mark.slow
def test_refit_of_stacked_layers() -> None:
    params = tree(**STACKED)
    stats = calibrate(stacked, params, [X])
    masks = jprune.find_masks(params, 0.5, where="w")
    new = refit(params, masks, stats, ridge=0)
    x = X
    for i in range(3):
        w, b = params["w"][i], params["b"][i]
        for n in range(8):
            on = np.asarray(masks["w"][i])[:, n]
            rows = np.concatenate([x[:, on], np.ones((60, 1))], 1)
            fit = np.linalg.lstsq(rows, x @ w[:, n], rcond=None)[0]
            got = np.asarray(new["w"][i])[on, n]
            np.testing.assert_allclose(got, fit[:-1], atol=1e-6)
        x = x + np.tanh(x @ w + b)


@pytest.mark.slow
def test_a_grid_inside_of_a_network() -> None:
    params = tree(**MLP)
    result = one_shot(
        mlp,
        params,
        [X],
        0.5,
        solver=solvers.sparsegpt(),
        grid=grids.integer(4),
    )
    zero_where_masked(result)
    assert lost(result.masks) == {"w": 48, "v": 48, "u": 16}
    for name in "wvu":
        for column in np.asarray(result.params[name]).T:
            points = np.unique(np.abs(column[column != 0]).round(9))
            assert len(points) <= 7


def branches(p: Any, x: Any) -> Any:
    return lax.cond(x[0, 0] > 0, lambda x: x @ p["a"], lambda x: x @ p["b"], x)


def test_a_branch_that_is_not_taken_stays() -> None:
    params = tree(a=(8, 4), b=(8, 4))
    result = one_shot(branches, params, [np.abs(X)], 0.5)
    np.testing.assert_array_equal(result.params["b"], params["b"])
    assert list(result.missed) == ["b"]
    assert "saw no row" in result.missed["b"]
    assert int((~result.masks["a"]).sum()) == 16
    b = result.masks["b"]
    assert isinstance(b, optax.MaskedNode) or bool(b.all())
    both = one_shot(branches, params, [np.abs(X), -np.abs(X)], 0.5)
    assert both.missed == {}
    assert lost(both.masks) == {"a": 16, "b": 16}


def test_weights_where_batches_go_different_ways() -> None:
    params, up = tree(a=(8, 4), b=(8, 4)), np.abs(X)
    keep = np.arange(60) % 3 != 1
    batches = [up, -up, 2 * up]
    how: dict[str, Any] = {"solver": solvers.sparsegpt()}
    got = one_shot(
        branches, params, batches, 0.5, weights=lambda x: keep, **how
    )
    some = one_shot(branches, params, [x[keep] for x in batches], 0.5, **how)
    jax.tree.map(np.testing.assert_array_equal, got.masks, some.masks)
    same(got.params, some.params)


class Compilations(logging.Handler):
    """What JAX says that it compiles."""

    def __init__(self) -> None:
        super().__init__()
        self.names: list[str] = []

    def emit(self, record: logging.LogRecord) -> None:
        if record.getMessage().startswith("Compiling "):
            self.names.append(record.getMessage().split(" ")[1])


@pytest.fixture
def compiled() -> Iterator[list[str]]:
    handler, logger = Compilations(), logging.getLogger("jax")
    logger.addHandler(handler)
    with jax.log_compiles(True):
        yield handler.names
    logger.removeHandler(handler)


@pytest.mark.sweep(3)
@pytest.mark.parametrize("solver", ["sparsegpt", "admm"])
def test_nothing_compiles_again_for_a_sparsity(
    solver: str, compiled: list[str]
) -> None:
    params, x = tree(w=(10, 6), v=(6, 3)), numbers(30, 10)
    fn = lambda p, x: jnp.tanh(x @ p["w"]) @ p["v"]
    one_shot(fn, params, [x], 0.5, solver=SOLVERS[solver])
    assert "jit(fitted)" in compiled or "jit(_block)" in compiled
    compiled.clear()
    one_shot(fn, params, [x], 0.7, solver=SOLVERS[solver])
    assert compiled == []


@pytest.mark.slow
@pytest.mark.parametrize("solver", ["sparsegpt", "admm"])
def test_nothing_compiles_for_layers_of_one_shape(
    solver: str, compiled: list[str]
) -> None:
    """Layers in turn, and of a scan: six cost what two do."""

    def names(fn: Any, params: Any) -> set[str]:
        compiled.clear()
        one_shot(fn, params, [numbers(30, size)], 0.5, solver=SOLVERS[solver])
        return set(compiled)

    size = 9 if solver == "admm" else 11  # not what another has compiled
    layers = [jnp.asarray(numbers(size, size))]
    solves = names(deep, layers * 2) & {
        *("jit(fitted)", "jit(_block)", "jit(_ranked)", "jit(problem_of)"),
        *("jit(judged)", "jit(_start)", "jit(_factor)", "jit(_moments)"),
    }
    assert len(solves) > 3
    # What is of all layers, counts say, is of another shape.
    assert not solves & names(deep, layers * 6)
    names(stacked, tree(w=(2, size, size), b=(2, size), v=(size, size)))
    again = names(stacked, tree(w=(6, size, size), b=(6, size), v=(size, size)))
    assert not solves & again


def test_a_bar_counts_products(monkeypatch: pytest.MonkeyPatch) -> None:
    import tqdm

    made: list[Any] = []

    class Bar:
        def __init__(self, **how: Any) -> None:
            self.total, self.done, self.closed = how["total"], 0, False
            made.append(self)

        def __enter__(self) -> "Bar":
            return self

        def __exit__(self, *error: Any) -> None:
            self.closed = True

        def update(self) -> None:
            self.done += 1

    monkeypatch.setattr(tqdm, "tqdm", Bar)
    mask = {"solver": solvers.mask_only()}
    one_shot(stacked, tree(**STACKED), [X], 0.5, **mask)  # type: ignore[arg-type]
    (batches, products) = made
    assert batches.total == batches.done == 1
    assert products.total == products.done == 4  # three layers and the last
    assert products.closed


def test_errors_print_as_a_table() -> None:
    errors = jprune.calibration.Errors(
        {"a/long/name": (0.5, 0.25), "b": (1, 0)}
    )
    assert str(errors).split("\n") == [
        "parameter    masked  repaired",
        "-----------------------------",
        "a/long/name  0.5000    0.2500",
        "b            1.0000    0.0000",
    ]


def experts(p: Any, x: Any) -> Any:
    return jnp.einsum("ebd,edn->ebn", x, p["w"])


@pytest.mark.slow
def test_an_expert_whose_rows_are_all_0() -> None:
    """It saw rows, in which nothing was active: its weights go first."""
    params = tree(w=(2, 8, 4))
    x = np.stack([X, 0 * X])
    result = one_shot(experts, params, [x], 0.5)
    assert np.isfinite(result.params["w"]).all()
    assert lost(result.masks) == {"w": 32}


@pytest.mark.slow
def test_a_tied_weight_adds_its_grams_or_stays() -> None:
    params = tree(w=(8, 8))
    twice = lambda p, x: jnp.tanh(x @ p["w"]) @ p["w"]
    result = one_shot(twice, params, [X], 0.5)
    assert lost(result.masks) == {"w": 32}
    assert result.missed == {}
    x = np.concatenate([X, np.tanh(X @ params["w"])])
    mask = np.asarray(result.masks["w"])
    stats = calibrate(twice, params, [X])
    new = np.asarray(refit(params, result.masks, stats, ridge=0)["w"])
    for n in range(8):
        on = mask[:, n]
        fit = np.linalg.lstsq(x[:, on], x @ params["w"][:, n], rcond=None)[0]
        np.testing.assert_allclose(new[on, n], fit, atol=1e-6)
    back = lambda p, x: jnp.tanh(x @ p["w"]) @ p["w"].T
    left = one_shot(back, params | tree(v=(8, 8)), [X], 0.5, where="w")
    np.testing.assert_array_equal(left.params["w"], params["w"])
    assert list(left.missed) == ["w"]


def test_refit_of_a_weight_in_two_ways_leaves_it() -> None:
    params = tree(w=(8, 8))
    back = lambda p, x: jnp.tanh(x @ p["w"]) @ p["w"].T
    stats = calibrate(back, params, [X])
    masks = jprune.find_masks(params, 0.5)
    new = refit(params, masks, stats)
    same(new, jprune.apply_masks(params, masks), 0)


class Net(nn.Module):
    @nn.compact
    def __call__(self, x: Any) -> Any:
        x = nn.relu(nn.Dense(12, param_dtype=jnp.float64)(x))
        x = nn.relu(nn.Dense(8, param_dtype=jnp.float64)(x))
        return nn.Dense(3, param_dtype=jnp.float64)(x)


def test_units_are_removed_repaired_and_compacted() -> None:
    net = Net()
    params = net.init(jax.random.key(0), X)
    graph = jprune.trace_units(net.apply, params, X)
    structure = jprune.units(graph)
    result = one_shot(net.apply, params, [X], 0.5, structure=structure)
    wanted = jprune.find_masks(
        params, 0.5, structure=structure, allocation=allocations.uniform()
    )
    count = lambda masks: jax.tree.map(lambda m: int((~m).sum()), masks)
    assert count(result.masks) == count(wanted)
    small = jprune.compact(net.apply, result.params, X, masks=result.masks)
    assert sorted(small.plan.sizes.values()) == [4, 6]
    assert small.certify(X, seeds=1).error < 1e-9
    dense = net.apply(params, X)
    plain = net.apply(jprune.apply_masks(params, wanted), X)
    off = lambda y: float(jnp.mean((y - dense) ** 2))
    assert off(net.apply(result.params, X)) < 0.5 * off(plain)


@pytest.mark.parametrize(
    ("change", "match"),
    [
        ({"batches": []}, "is empty"),
        ({"batches": X}, "iterable of batches"),
        ({"batches": [X, X[:25]]}, "batch 1 is .*same shapes"),
        ({"sparsity": 1.5}, r"one_shot|sparsity"),
        ({"batches": [np.where(X > 2, np.nan, X)]}, "NaN or inf.*'w'"),
        ({"solver": solvers.admm}, "admm"),
        ({"targets": "both"}, "targets"),
        ({"grid": grids.integer}, "integer"),
        ({"where": "nothing"}, "nothing"),
        ({"structure": structures.fan_in}, "fan_in"),
    ],
    ids=lambda x: str(x)[:20],
)
def test_what_is_refused(change: Any, match: str) -> None:
    call: dict[str, Any] = {"batches": [X], "sparsity": 0.5} | change
    with pytest.raises(ValueError, match=match):
        one_shot(mlp, tree(**MLP), **call)


@pytest.mark.slow
@pytest.mark.parametrize("kind", [AxisType.Auto, AxisType.Explicit])
def test_sharded_batches(kind: AxisType) -> None:
    mesh = jax.make_mesh((8,), ("x",), axis_types=(kind,))
    params = {"w": jnp.asarray(numbers(8, 6)), "v": jnp.asarray(numbers(6, 4))}
    fn = lambda p, x: jnp.tanh(x @ p["w"]) @ p["v"]
    x = X[:56]
    wanted = one_shot(fn, params, [x], 0.5, solver=solvers.sparsegpt())
    with jax.set_mesh(mesh):
        spec = NamedSharding(mesh, PartitionSpec("x"))
        whole = NamedSharding(mesh, PartitionSpec())
        got = one_shot(
            fn,
            jax.device_put(params, whole),
            [jax.device_put(x, spec)],
            0.5,
            solver=solvers.sparsegpt(),
        )
    jax.tree.map(
        np.testing.assert_array_equal,
        jax.device_get(got.masks),
        jax.device_get(wanted.masks),
    )
    same(jax.device_get(got.params), jax.device_get(wanted.params))


@pytest.mark.slow
def test_results_are_divided_as_the_parameters_are() -> None:
    mesh = jax.make_mesh((8,), ("x",), axis_types=(AxisType.Auto,))
    sharding = NamedSharding(mesh, PartitionSpec(None, None, "x"))
    stack = jax.device_put(jnp.asarray(numbers(2, 8, 8)), sharding)

    def fn(stack: Any, x: Any) -> Any:
        return jax.lax.scan(lambda x, w: (jnp.tanh(x @ w), None), x, stack)[0]

    x = jax.device_put(X[:56, :8], NamedSharding(mesh, PartitionSpec()))
    got = one_shot(fn, stack, [x], 0.5, solver=solvers.sparsegpt())
    for new in got.params, got.masks:
        assert new.sharding.is_equivalent_to(sharding, 3)


@pytest.mark.slow
def test_an_expert_without_rows_stays_whole() -> None:
    params = {"w": jnp.asarray(numbers(3, 4, 2), jnp.float32)}
    x = jnp.asarray(numbers(9, 4, seed=1), jnp.float32)

    def fn(params: Any, x: Any, sizes: Any) -> Any:
        return jax.lax.ragged_dot(x, params["w"], sizes)

    batch = x, jnp.array([5, 0, 4])
    result = one_shot(fn, params, [batch], 0.5)
    assert int(result.masks["w"][jnp.array([0, 2])].sum()) == 8  # of 16
    assert result.masks["w"][1].all()
    np.testing.assert_array_equal(result.params["w"][1], params["w"][1])
    assert "1 of 3 groups" in result.missed["w"]


def normal(*shape: int, seed: int) -> Any:
    return jnp.asarray(numbers(*shape, seed=seed) / shape[-2] ** 0.5, "float32")


def convolutions(params: Any, x: Any) -> Any:
    x = lax.conv_general_dilated(
        x.reshape(-1, 4, 4, 1),
        params["w"],
        (1, 1),
        "SAME",
        dimension_numbers=("NHWC", "HWIO", "NHWC"),
    )
    x = jax.nn.relu(x + params["b"])
    return x.reshape(len(x), -1) @ params["v"]


def residual(params: Any, x: Any) -> Any:
    def block(h: Any, layer: Any) -> tuple[Any, None]:
        inner = jax.nn.relu(h @ layer["w"] + layer["b"])
        return h + inner @ layer["v"], None

    h, _ = lax.scan(block, x @ params["i"], params["layers"])
    return h @ params["o"]


def gated(params: Any, x: Any) -> Any:
    h = jax.nn.relu(x @ params["w"] + params["b"])
    return (h @ params["u"]) * jax.nn.sigmoid(h @ params["v"])


RESIDUAL = {
    "i": normal(16, 8, seed=1),
    "layers": {
        "w": normal(3, 8, 6, seed=2),
        "b": jnp.zeros((3, 6)),
        "v": normal(3, 6, 8, seed=3),
    },
    "o": normal(8, 3, seed=4),
}
OF_UNITS: Any = {
    "channels through flatten": (
        convolutions,
        {
            "w": normal(3, 3, 1, 6, seed=1),
            "b": jnp.zeros(6),
            "v": normal(96, 3, seed=2),
        },
        None,
    ),
    "layers of a scan": (
        residual,
        RESIDUAL,
        "layers/b",
    ),
    "a residual stream": (
        residual,
        RESIDUAL,
        "i",
    ),
    "two consumers": (
        gated,
        {
            "w": normal(16, 8, seed=1),
            "b": jnp.zeros(8),
            "u": normal(8, 3, seed=2),
            "v": normal(8, 3, seed=3),
        },
        None,
    ),
}


@pytest.mark.slow
@pytest.mark.parametrize("targets", ["own", "dense"])
@pytest.mark.parametrize("name", OF_UNITS)
def test_half_of_all_kinds_of_units(name: str, targets: str) -> None:
    fn, params, where = OF_UNITS[name]
    x = jnp.asarray(numbers(200, 16, seed=9), jnp.float32)
    structure = jprune.units(jprune.trace_units(fn, params, x), where=where)
    batches = [x[:100], x[100:]]
    result = one_shot(
        fn, params, batches, 0.5, structure=structure, targets=targets
    )
    count = jprune.find_masks(params, 0.5, structure=structure)
    for mine, theirs in zip(
        jax.tree.leaves(result.masks), jax.tree.leaves(count), strict=True
    ):
        assert int(mine.sum()) == int(theirs.sum())

    def error(p: Any) -> float:
        return float(jnp.mean((fn(p, x) - fn(params, x)) ** 2))

    assert error(result.params) < error(jprune.apply_masks(params, count))
    small = jprune.compact(fn, result.params, x)
    assert small.certify(x).error < 1e-3
    assert not result.missed
    for before, after in result.errors.values():
        assert after < before


@pytest.mark.slow
def test_units_of_products_side_by_side_are_compared() -> None:
    """Depthwise: each product has one unit, and the least missed of all go."""
    scale = jnp.array([1.0, 0.01] * 3, jnp.float32)
    params = {
        "w": normal(16, 96, seed=1),
        "depthwise": normal(3, 1, 6, seed=2) * scale,
        "v": normal(96, 2, seed=3),
    }

    def fn(params: Any, x: Any) -> Any:
        h = jax.nn.relu(x @ params["w"]).reshape(-1, 16, 6)
        h = lax.conv_general_dilated(
            h,
            params["depthwise"],
            (1,),
            "SAME",
            dimension_numbers=("NWC", "WIO", "NWC"),
            feature_group_count=6,
        )
        return h.reshape(len(h), -1) @ params["v"]

    x = jnp.asarray(numbers(200, 16, seed=9), jnp.float32)
    structure = jprune.units(jprune.trace_units(fn, params, x), where="depth")
    result = one_shot(fn, params, [x], 0.5, structure=structure)
    kept = result.masks["depthwise"].all((0, 1))
    assert kept.tolist() == [True, False] * 3
