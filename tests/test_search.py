"""`sensitivity`, `fit` and `fitted`: counting, closed forms, brute force."""

import itertools
import pickle
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from compaction_models import MODELS

import jprune
from jprune import allocations, criteria, report, search, structures
from jprune.allocations import Pools
from jprune.search import Curves, Fit, Polynomial


def numbers(*shape: int, seed: int = 0) -> Any:
    return jnp.asarray(np.random.default_rng(seed).standard_normal(shape))


def mlp(params, x):
    h = jax.nn.relu(x @ params["w"] + params["b"])
    return jax.nn.relu(h @ params["v"]) @ params["u"]


PARAMS = {
    "w": numbers(4, 12),
    "b": numbers(12, seed=1),
    "v": numbers(12, 8, seed=2),
    "u": numbers(8, 3, seed=3),
}
X = numbers(64, 4, seed=4)


@pytest.fixture(scope="module")
def graph():
    return jprune.trace_units(mlp, PARAMS, X)


@pytest.fixture(scope="module")
def curves(graph):
    return search.sensitivity(mlp, PARAMS, [X], structure=jprune.units(graph))


# Curves ----------------------------------------------------------------------


def test_curves_of_a_quadratic_loss_are_sums_of_squares():
    """With orthonormal inputs a weight that goes costs its square."""
    params = {"a": numbers(6, 5), "b": numbers(6, 2, seed=1)}
    x = jnp.eye(6)
    curves = search.sensitivity(
        lambda p, x: jnp.concatenate([x @ p["a"], x @ p["b"]], 1),
        params,
        [x],
        structure=structures.unstructured(),
        criterion=criteria.magnitude(),
        distance=lambda y, z: jnp.sum((y - z) ** 2),
    )
    assert curves.names == ("a", "b")
    for name, counts, losses in zip(
        curves.names, curves.counts, curves.losses, strict=True
    ):
        squares = np.sort(np.asarray(params[name]).ravel() ** 2)
        gone = squares.size - counts
        wanted = [squares[:n].sum() for n in gone]
        np.testing.assert_allclose(losses, wanted, rtol=1e-5, atol=1e-6)
        assert counts[0] == squares.size
        assert (np.diff(counts) < 0).all()


@pytest.mark.slow
def test_a_unit_less_is_measured_with_all_others(graph, curves):
    """The loss of a pool at a count, from masks made by hand."""
    structure = jprune.units(graph)
    criterion = criteria.gauss_newton(mlp, PARAMS, X)
    at = 1  # the second level of the first pool
    counts = curves.counts[0]
    share = 1 - counts[at] / counts[0]
    masks = jprune.find_masks(
        PARAMS,
        1.0,
        criterion=criterion,
        structure=structure,
        allocation=allocations.given({r"^b\[0\]": float(share)}),
    )
    assert int(masks["b"].sum()) == counts[at]
    dense = mlp(PARAMS, X)
    cut = mlp(jprune.apply_masks(PARAMS, masks), X)
    p, q = jax.nn.log_softmax(dense), jax.nn.log_softmax(cut)
    wanted = float(jnp.mean(jnp.sum(jnp.exp(p) * (p - q), -1)))
    np.testing.assert_allclose(curves.losses[0][at], wanted, rtol=1e-4)


def test_nothing_is_compiled_for_more_levels(graph, compilations):
    def programs(levels):
        compilations.clear()
        search.sensitivity(
            mlp,
            PARAMS,
            [X],
            structure=jprune.units(graph),
            criterion=criteria.magnitude(),
            levels=levels,
        )
        return len(compilations)

    programs(2)  # scores, orders and the dense outputs are compiled once
    few = programs(3)
    assert few == programs(9) == 1


@pytest.mark.slow
def test_labels_on_request(graph):
    y = jnp.argmax(mlp(PARAMS, X), -1)

    def wrong(logits, x, y):
        return jnp.mean(logits.argmax(-1) != y)

    curves = search.sensitivity(
        mlp,
        PARAMS,
        [(X, y), (X[:32], y[:32])],
        structure=jprune.units(graph),
        loss=wrong,
        inputs=1,
        levels=4,
    )
    for losses in curves.losses:
        assert losses[0] == 0
        assert (np.diff(losses) >= 0).all()
        assert 0 < losses[-1] <= 1


def test_curves_are_saved_and_print(curves, tmp_path):
    curves.save(tmp_path / "curves.json")
    again = Curves.load(tmp_path / "curves.json")
    jax.tree.map(np.testing.assert_array_equal, again, curves)
    assert str(again) == str(curves)
    assert "b[0]" in str(curves)
    assert "at 25%" in str(curves)
    (tmp_path / "other.json").write_text("[1, 2]")
    with pytest.raises(ValueError, match=r"other\.json.*holds no curves"):
        Curves.load(tmp_path / "other.json")


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"structure": structures.n_m(2, 4)}, "nothing to search for"),
        ({"criterion": criteria.taylor()}, "reads gradients"),
        ({"levels": 1}, "levels"),
        ({"distance": lambda y, z: y - z}, "distance.* must return a scalar"),
        ({"loss": lambda y, x: y}, "loss.* must return a scalar"),
    ],
)
def test_what_can_not_be_measured_is_refused(graph, options, words):
    options = {"structure": jprune.units(graph)} | options
    with pytest.raises(ValueError, match=words):
        search.sensitivity(mlp, PARAMS, [X], **options)


def test_no_batches_are_refused(graph):
    with pytest.raises(ValueError, match="empty"):
        search.sensitivity(mlp, PARAMS, [], structure=jprune.units(graph))
    with pytest.raises(ValueError, match="iterable of batches"):
        search.sensitivity(mlp, PARAMS, X, structure=jprune.units(graph))


def test_distances():
    y = numbers(5, 3)
    assert float(search.kl(y, y + 1)) == pytest.approx(0, abs=1e-6)
    p, q = jax.nn.softmax(y), jax.nn.softmax(2 * y)
    wanted = float(jnp.mean(jnp.sum(p * jnp.log(p / q), -1)))
    assert float(search.kl(y, 2 * y)) == pytest.approx(wanted, rel=1e-4)
    excluded = y.at[:, 0].set(-jnp.inf)
    assert float(search.kl(excluded, excluded)) == pytest.approx(0, abs=1e-6)
    apart = float(search.squared_error(y, jnp.broadcast_to(y.mean(0), y.shape)))
    assert apart == pytest.approx(1, rel=1e-5)


def test_single_numbers_are_not_taken_for_logits():
    params = PARAMS | {"u": PARAMS["u"][:, :1]}
    found = search.sensitivity(
        mlp,
        params,
        [X],
        structure=jprune.units(jprune.trace_units(mlp, params, X)),
        levels=3,
    )
    assert all(losses[-1] > 0.1 for losses in found.losses)


# Fits ------------------------------------------------------------------------


def chained(sizes: list[int], seed: int) -> Curves:
    """Layers in a row, of which each costs what it and the next one keep."""
    rng = np.random.default_rng(seed)
    counts, losses = [], []
    for size in sizes:
        tried = np.rint(size * np.geomspace(1, 0.04, 14)).astype(int)
        tried = np.unique(np.maximum(tried, 1))[::-1]
        steps = rng.exponential(1, len(tried) - 1)
        steps *= np.linspace(0.2, 3, len(steps)) ** rng.uniform(0, 3)
        counts.append(tried)
        losses.append(np.append(0, steps.cumsum()) * 10 ** rng.uniform(-2, 1))
    last = len(sizes)
    pools = [
        [0, last],
        *([i, i + 1] for i in range(last - 1)),
        [last - 1, last],
    ]
    cost = Polynomial(rng.uniform(1, 100, last + 1), np.array(pools, np.int32))
    return Curves(
        tuple(f"layer {i}" for i in range(last)),
        np.ones(last, int),
        np.array(sizes),
        tuple(counts),
        tuple(losses),
        {"multiply_adds": cost},
    )


def least_lost(curves: Curves, budget: float) -> float:
    """Every configuration within the budget, in plain NumPy."""
    ranges = [
        np.arange(counts[-1], size + 1)
        for counts, size in zip(curves.counts, curves.sizes, strict=True)
    ]
    every = np.stack(np.meshgrid(*ranges, indexing="ij"), -1)
    every = every.reshape(-1, len(ranges))
    cost = curves.costs["multiply_adds"]
    shares = np.append(every / curves.sizes, np.ones((len(every), 1)), 1)
    left = sum(
        amount * shares[:, pools].prod(1)
        for amount, pools in zip(cost.amounts, cost.pools, strict=True)
    )
    lost = sum(
        np.interp(np.log(every[:, i]), np.log(counts[::-1]), losses[::-1])
        for i, (counts, losses) in enumerate(
            zip(curves.counts, curves.losses, strict=True)
        )
    )
    return float(lost[left <= budget * cost.amounts.sum() + 1e-9].min())


@pytest.mark.parametrize("seed", range(6))
def test_few_configurations_are_all_tried(seed):
    curves = chained([9, 12, 10], seed)
    fit = search.fit(curves, {"multiply_adds": 0.4}, floor=0.0)
    assert fit.loss == pytest.approx(least_lost(curves, 0.4), rel=1e-9)


@pytest.mark.parametrize("seed", range(6))
def test_many_configurations_come_close_to_the_best(seed):
    curves = chained([60, 80, 70], seed)
    fit = search.fit(curves, {"multiply_adds": 0.4}, floor=0.0)
    assert fit.left["multiply_adds"] <= 0.4 + 1e-9
    best = least_lost(curves, 0.4)
    assert best * (1 - 1e-9) <= fit.loss <= best * 1.05


@pytest.mark.slow
@pytest.mark.sweep(2)
@pytest.mark.parametrize("name", ["mlp", "gpt"])
def test_costs_of_a_fit_are_those_of_the_compact_model(name):
    check_costs(*MODELS[name]())


@pytest.mark.slow
@pytest.mark.parametrize("name", MODELS)
def test_costs_of_any_fit_are_those_of_the_compact_model(name):
    check_costs(*MODELS[name]())


def check_costs(fn, params, args):
    """Counts of a fit by magnitude, against `report.cost`."""
    rng = np.random.default_rng(0)
    params = jax.tree.map(
        lambda x: jnp.asarray(rng.uniform(0.5, 1, x.shape), x.dtype), params
    )
    graph = jprune.trace_units(fn, params, *args)
    structure = jprune.units(graph)
    curves = uncertain(structure)
    fit = search.fit(curves, {"multiply_adds": 0.6, "parameters": 0.7})
    masks = jprune.find_masks(
        params,
        fit.sparsity,
        structure=structure,
        allocation=allocations.fitted(fit),
    )
    found = report.cost(fn, params, *args, masks=masks)
    for cost in ("multiply_adds", "parameters", "bytes"):
        assert round(fit.costs[cost]) == getattr(found.compact, cost)
        whole = getattr(found.dense, cost)
        assert fit.left[cost] == pytest.approx(fit.costs[cost] / whole)
    assert fit.left["multiply_adds"] <= 0.6 + 1e-9
    assert fit.left["parameters"] <= 0.7 + 1e-9


def uncertain(structure) -> Curves:
    """Curves that nobody measured, of a structure of units."""
    pools = structure.members.pools
    sizes = np.array([pool.shape[1] for pool in pools])
    counts = tuple(np.arange(n, 0, -1) for n in sizes)
    return Curves(
        tuple(names[0] for names in structure.names),
        np.array([len(pool) for pool in pools]),
        sizes,
        counts,
        tuple(0.1 * (i + 1) * (n[0] - n) / n[0] for i, n in enumerate(counts)),
        {
            k: structure.costs(k)
            for k in ("multiply_adds", "parameters", "bytes")
        },
    )


def test_costs_of_weights_are_those_that_are_not_masked():
    params = {"a": numbers(4, 5), "b": numbers(2, 3, 4, 6, seed=1)}

    def fn(params, x):  # side by side: no weight makes another one useless
        windows = jax.lax.conv(
            x, params["b"].transpose(3, 2, 0, 1), (1, 1), "SAME"
        )
        return windows.sum(), (x.sum((2, 3)) @ params["a"]).sum()

    x = numbers(7, 4, 8, 9)
    curves = search.sensitivity(
        fn,
        params,
        [x],
        structure=structures.unstructured(),
        levels=4,
        distance=search.squared_error,
    )
    fit = search.fit(curves, {"parameters": 0.5})
    masks = jprune.find_masks(
        params, fit.sparsity, allocation=allocations.fitted(fit)
    )
    found = report.cost(fn, params, x, masks=masks)
    assert round(fit.costs["parameters"]) == found.masked.parameters
    assert round(fit.costs["multiply_adds"]) == found.masked.multiply_adds
    assert fit.left["parameters"] <= 0.5


def test_pools_keep_multiples_and_a_floor():
    curves = chained([64, 48], 0)
    fit = search.fit(curves, {"multiply_adds": 0.5}, round_to=8)
    assert (fit.counts % 8 == 0).all()
    lost = np.array([0.0, 1.0])  # the first pool costs nothing to lose
    uneven = curves._replace(
        losses=tuple(
            np.linspace(0, x, len(c))
            for x, c in zip(lost, curves.counts, strict=True)
        )
    )
    cost = Polynomial(np.array([50.0, 50.0]), np.array([[0], [1]], np.int32))
    uneven = uneven._replace(costs={"multiply_adds": cost})
    for floor, least in ((0.0, 3), (0.5, 16), (1.0, 33)):
        found = search.fit(uneven, {"multiply_adds": 0.53}, floor=floor)
        assert found.counts[0] >= least  # uniform keeps .53 of 64: 33.92
        assert found.counts[0] <= least + 2  # what is left of the budget


def test_the_same_seed_gives_the_same_fit():
    curves = chained([50, 60, 70, 80], 1)
    first, again = (
        search.fit(curves, {"multiply_adds": 0.3}) for _ in range(2)
    )
    np.testing.assert_array_equal(first.counts, again.counts)
    assert str(first) == str(again)
    assert "multiply_adds 29.8%" in str(first)
    with pytest.raises(ValueError, match=r"seed.* must be an integer >= 0"):
        search.fit(curves, {"multiply_adds": 0.3}, seed=-1)


@pytest.mark.parametrize(
    ("budget", "words"),
    [
        ({"multiply_adds": 0.0001}, "the least that can be reached"),
        ({"multiply_adds": 1.5}, r"in \(0, 1\], got 1.5"),
        ({"flops": 0.5}, "'flops' is none of the costs 'multiply_adds'"),
        (0.5, "must be a dict"),
        ({}, "must be a dict"),
    ],
)
def test_bad_budgets_are_refused(budget, words):
    with pytest.raises(ValueError, match=words):
        search.fit(chained([8, 8], 0), budget)


# Fitted ----------------------------------------------------------------------


def fit_of(numbers, sizes, counts) -> Fit:
    many, size, count = (
        np.asarray(x, np.int64) for x in (numbers, sizes, counts)
    )
    names = tuple(f"{i}" for i in range(len(sizes)))
    return Fit(names, many, size, count, {}, {}, 0.0)


def joined(counts) -> np.ndarray:
    return np.concatenate([np.atleast_1d(np.asarray(x)) for x in counts])


@pytest.mark.sweep(2)
@pytest.mark.parametrize(
    ("numbers", "sizes", "counts"),
    [
        ([1, 2, 1], [17, 5, 9], [3, 5, 0]),
        ([1], [30], [30]),
        ([1, 1], [8, 40], [1, 2]),
    ],
)
def test_counts_on_the_way_are_exact_and_never_rise(numbers, sizes, counts):
    fit = fit_of(numbers, sizes, counts)
    pools = Pools(fit.numbers, fit.sizes, None, None)
    rows = np.repeat(fit.sizes, fit.numbers)
    traced = jax.jit(
        lambda s: jnp.concatenate(allocations.fitted(fit).counts(pools, s))
    )
    before = rows
    for lost in range(rows.sum() - fit.numbers @ fit.counts + 1):
        sparsity = lost / rows.sum()
        found = joined(allocations.fitted(fit).counts(pools, sparsity))
        assert found.sum() == rows.sum() - lost
        assert (found <= before).all()
        np.testing.assert_array_equal(traced(jnp.float32(sparsity)), found)
        before = found
    np.testing.assert_array_equal(before, np.repeat(fit.counts, fit.numbers))
    np.testing.assert_array_equal(traced(1.0), before)  # and no further


def test_shares_go_by_even_ratios():
    fit = fit_of([1, 1], [1000, 4000], [500, 1000])
    pools = Pools(fit.numbers, fit.sizes, None, None)
    for way in (0.25, 0.5, 0.75):
        wanted = 1000 * 0.5**way, 4000 * 0.25**way
        sparsity = 1 - sum(wanted) / 5000
        found = joined(allocations.fitted(fit).counts(pools, sparsity))
        np.testing.assert_allclose(found, wanted, atol=1)


def test_a_schedule_passes_through_the_way(graph, curves):
    """What is pruned stays pruned, and the end is the fit."""
    fit = search.fit(curves, {"multiply_adds": 0.4})
    schedule = optax.linear_schedule(0.0, fit.sparsity, 4)
    tx = jprune.prune(
        schedule,
        structure=jprune.units(graph),
        allocation=allocations.fitted(fit),
    )
    state = tx.init(PARAMS)
    zeros = jax.tree.map(jnp.zeros_like, PARAMS)
    step = jax.jit(tx.update)
    kept, params = [], PARAMS
    for _ in range(6):
        updates, state = step(zeros, state, params)
        params = optax.apply_updates(params, updates)
        masks = jprune.get_masks(state)
        kept.append(np.append(masks["b"], masks["u"][:, 0]))
    for now, then in itertools.pairwise(kept):
        assert not (then & ~now).any()
    assert [kept[-1][:12].sum(), kept[-1][12:].sum()] == fit.counts.tolist()


@pytest.mark.slow
def test_by_a_cost_it_reaches_the_fit(graph, curves):
    fit = search.fit(curves, {"multiply_adds": 0.4})
    structure = jprune.units(graph, by="multiply_adds")
    allocation = allocations.fitted(fit)
    end = 1 - fit.left["multiply_adds"]
    masks = jprune.find_masks(
        PARAMS, end, structure=structure, allocation=allocation
    )
    assert [int(masks["b"].sum()), int(masks["u"][:, 0].sum())] == (
        fit.counts.tolist()
    )
    with pytest.raises(ValueError, match="has counts up to a sparsity of"):
        jprune.find_masks(
            PARAMS, end + 0.01, structure=structure, allocation=allocation
        )


def test_what_a_fit_does_not_know_is_refused(graph, curves):
    fit = search.fit(curves, {"multiply_adds": 0.4})
    allocation = allocations.fitted(fit)
    with pytest.raises(ValueError, match=r"up to a sparsity of .* got 0\.99"):
        jprune.find_masks(
            PARAMS, 0.99, structure=jprune.units(graph), allocation=allocation
        )
    with pytest.raises(ValueError, match=r"pool 0, 'u', has 1 x 24 units"):
        jprune.find_masks(PARAMS, 0.1, allocation=allocation)
    with pytest.raises(ValueError, match=r"search\.fit"):
        allocations.fitted(curves)


def test_fitted_pickles_and_prints():
    fit = fit_of([1, 1], [8, 8], [6, 2])
    pools = Pools(fit.numbers, fit.sizes, None, None)
    allocation = allocations.fitted(fit)
    again = pickle.loads(pickle.dumps(allocation))
    assert repr(again) == repr(allocation) == "fitted(Fit(...))"
    for one in (allocation, again):
        assert joined(one.counts(pools, 0.25)).tolist() == [7, 5]
