"""Sparsity as a fraction of parameters or multiply-adds: against counting."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from compaction_models import MODELS
from test_compaction import SLOW
from test_units import SHAPES, fn

import jprune
from jprune import allocations, report
from jprune.choosing import choose as _find
from jprune.compaction.costs import fraction_left
from jprune.selection.select import select

X = np.ones((5, 4))
COSTS = ("parameters", "multiply_adds")
ALLOCATIONS = {
    "uniform": allocations.uniform(),
    "ranking": allocations.global_ranking(),
    "floor": allocations.global_ranking(min_density=0.3),
}


@pytest.fixture
def params():
    rng = np.random.default_rng(0)
    return {k: jnp.asarray(rng.standard_normal(s)) for k, s in SHAPES.items()}


@pytest.fixture
def graph(params):
    return jprune.trace_units(fn, params, X)


def cost_of(kept, by):
    """The perceptron 4-8-6-2, so many units in the hidden layers."""
    n, m = kept
    if by == "parameters":
        return 4 * n + n + n * m + m + 2 * m
    return len(X) * (4 * n + n * m + 2 * m)


def kept(masks):
    return int(masks["b"].sum()), int(masks["c"].sum())


def scores_of(params):
    w, b, v, c, u = (abs(np.asarray(params[k])) for k in "wbvcu")
    return w.sum(0) + b + v.sum(1), v.sum(0) + c + u.sum(1)


def expected(params, sparsity, by, name):
    """Removes unit by unit until it is little enough."""
    first, second = scores_of(params)
    least = (1, 1) if name != "floor" else (3, 2)
    steps = []
    if name == "uniform":
        for r in np.linspace(0, 1, 4801):
            steps.append(
                tuple(max(n - round(r * n), 1) for n in (len(first), 6))
            )
    else:
        best = [
            np.argsort(-s, kind="stable")[:n]
            for s, n in zip((first, second), least, strict=True)
        ]
        order = sorted(
            (s not in best[i] or name != "floor", -score, i, s)
            for i, scores in enumerate((first, second))
            for s, score in enumerate(scores)
        )
        for k in range(14, -1, -1):
            count = [0, 0]
            for _, _, i, _ in order[:k]:
                count[i] += 1
            steps.append(tuple(map(max, count, least)))
    goal = (1 - sparsity) * cost_of((8, 6), by)
    return next((s for s in steps if cost_of(s, by) <= goal), steps[-1])


@pytest.mark.parametrize("name", ["uniform", "ranking"])
@pytest.mark.slow
def test_costs_of_pools_that_may_be_emptied(name, graph, params):
    """As in a structure of one's own, which says nothing of multiples."""
    structure = jprune.units(graph, by="parameters", floor=0)
    structure = structure._replace(round_to=0)
    how: Any = {"structure": structure, "allocation": ALLOCATIONS[name]}
    for sparsity, jitted in [(0.6, False), (0.6, True), (1.0, True)]:
        find = jax.jit(lambda p, s: jprune.find_masks(p, s, **how))
        masks = (
            find(params, sparsity)
            if jitted
            else jprune.find_masks(params, sparsity, **how)
        )
        wanted = expected(params, sparsity, "parameters", name)
        assert kept(masks) == (wanted if sparsity < 1 else (0, 0))


@pytest.mark.parametrize("by", COSTS)
@pytest.mark.parametrize("name", ALLOCATIONS)
@pytest.mark.sweep(6)
def test_as_few_units_go_as_leave_little_enough(name, by, graph, params):
    structure = jprune.units(graph, by=by)
    find = jax.jit(
        lambda p, s: jprune.find_masks(
            p, s, structure=structure, allocation=ALLOCATIONS[name]
        )
    )
    for sparsity in np.linspace(0, 1, 21):
        wanted = expected(params, sparsity, by, name)
        assert kept(find(params, sparsity)) == wanted, sparsity
    once = jprune.find_masks(
        params, 0.6, structure=structure, allocation=ALLOCATIONS[name]
    )
    assert kept(once) == expected(params, 0.6, by, name)
    best = np.argsort(-scores_of(params)[0])[: kept(once)[0]]
    assert once["b"][best].all()
    found = report.cost(fn, params, X, masks=once)
    assert getattr(found.compact, by) == cost_of(kept(once), by)


MARKS: Any = {
    (False, False): (),
    (False, True): pytest.mark.slow,
    (True, True): pytest.mark.heavy,
}


@pytest.mark.parametrize(
    "name",
    [pytest.param(n, marks=MARKS[n == "resnet18", n in SLOW]) for n in MODELS],
)
def test_what_is_left_is_what_the_report_counts(name):
    model, params, args = MODELS[name]()
    rng = np.random.default_rng(0)
    params = jax.tree.map(lambda x: jnp.asarray(rng.random(x.shape)), params)
    graph = jprune.trace_units(model, params, *args)
    structure = jprune.units(graph, by="multiply_adds")
    masks = jprune.find_masks(params, 0.5, structure=structure)
    found = report.cost(model, params, *args, masks=masks)
    assert found.compact.multiply_adds <= found.dense.multiply_adds / 2
    ones = jax.tree.map(lambda m: jnp.asarray(m, float), masks)
    units = structure.to_units(ones)
    counts = jnp.concatenate([(x > 0).sum(1, np.int32) for x in units])
    for by in COSTS:
        share = getattr(found.compact, by) / getattr(found.dense, by)
        left = float(fraction_left(graph, by)(counts))
        assert left == pytest.approx(share, rel=1e-5)


@pytest.mark.slow
def test_layers_of_a_scan_stay_alike_under_one_ranking():
    model, params, args = MODELS["gpt"]()
    rng = np.random.default_rng(0)
    params = jax.tree.map(lambda x: jnp.asarray(rng.random(x.shape)), params)
    graph = jprune.trace_units(model, params, *args)
    masks = jprune.find_masks(
        params,
        0.4,
        structure=jprune.units(graph, by="multiply_adds"),
        allocation=allocations.global_ranking("l2"),
    )
    found = report.cost(model, params, *args, masks=masks)
    share = found.compact.multiply_adds / found.dense.multiply_adds
    assert 0.45 < share <= 0.6


@pytest.mark.parametrize("name", ["uniform", "ranking"])
@pytest.mark.slow
def test_gradually_and_in_multiples(name, graph, params, compilations):
    by = "multiply_adds"
    rates = optax.piecewise_interpolate_schedule(
        "linear", 0.1, {4: 8.0, 8: 0.25}
    )
    pruner = jprune.prune(
        rates,
        structure=jprune.units(graph, round_to=2, by=by),
        allocation=ALLOCATIONS[name],
    )
    tx = optax.chain(optax.sgd(0.01), pruner)
    state, now = tx.init(params), params
    update = jax.jit(tx.update)
    rng, before = np.random.default_rng(0), None
    for step in range(11):
        grads = jax.tree.map(
            lambda p: jnp.asarray(rng.standard_normal(p.shape)), now
        )
        compilations.clear()
        updates, state = update(grads, state, now)
        assert step == 0 or not compilations
        now = optax.apply_updates(now, updates)
        masks = jprune.get_masks(state)
        assert all(n % 2 == 0 for n in kept(masks))
        goal = (1 - float(rates(min(step, 10)))) * cost_of((8, 6), by)
        assert cost_of(kept(masks), by) <= goal * (1 + 1e-5)
        if before is not None and step <= 4:  # what is pruned stays
            assert not (masks["b"] & ~before["b"]).any()
            assert not (masks["c"] & ~before["c"]).any()
        before = masks
    assert sum(kept(masks)) > 6  # the target fell to .2: they came back


@pytest.mark.slow
def test_what_is_pruned_stays_at_a_constant_target(graph, params):
    pruner = jprune.prune(
        0.37,
        structure=jprune.units(graph, by="parameters"),
        allocation=allocations.global_ranking(),
    )
    tx = optax.chain(optax.sgd(1.0), pruner)
    state, now = tx.init(params), params
    update, rng = jax.jit(tx.update), np.random.default_rng(0)
    seen = set()
    for _ in range(20):
        grads = jax.tree.map(
            lambda p: jnp.asarray(rng.standard_normal(p.shape)), now
        )
        updates, state = update(grads, state, now)
        now = optax.apply_updates(now, updates)
        masks = jprune.get_masks(state)
        seen.add((*masks["b"].tolist(), *masks["c"].tolist()))
    assert len(seen) == 1


@pytest.mark.parametrize("name", ["uniform", "ranking"])
@pytest.mark.slow
def test_the_same_in_a_step_and_on_a_mesh(name, graph, params):
    how: dict[str, Any] = {
        "structure": jprune.units(graph, by="multiply_adds"),
        "allocation": ALLOCATIONS[name],
    }
    wanted = jprune.find_masks(params, 0.5, **how)
    tx = jprune.prune(0.5, **how)
    _, state = jax.jit(tx.update)(params, tx.init(params), params)
    same = np.testing.assert_array_equal
    jax.tree.map(same, jprune.get_masks(state), wanted)
    kind = jax.sharding.AxisType.Explicit
    mesh = jax.make_mesh((2,), ("x",), axis_types=(kind,))
    with jax.set_mesh(mesh):
        spec = jax.sharding.PartitionSpec(None, "x")
        divided = params | {"w": jax.device_put(params["w"], spec)}
        jax.tree.map(same, jprune.find_masks(divided, 0.5, **how), wanted)


def test_refusals(graph, params):
    with pytest.raises(ValueError, match=r"`units\(by=...\)` must be 'units'"):
        jprune.units(graph, by="flops")
    bare = jprune.trace_units(
        lambda p, x: (x * p["w"]).sum(), {"w": jnp.ones(3)}, jnp.ones(())
    )
    with pytest.raises(ValueError, match="the program has none"):
        jprune.units(bare, by="multiply_adds")
    with pytest.raises(ValueError, match="has no number of units"):
        jprune.sparse_evolution(
            optax.sgd(0.1),
            0.5,
            fraction=0.3,
            structure=jprune.units(graph, by="parameters"),
            allocation=allocations.global_ranking(),
        )


def test_units_are_ranked_once(monkeypatch, graph, params):
    """Whatever the budget, and not at each step towards it."""
    calls: list[Any] = []

    def counted(*args: Any, **how: Any) -> Any:
        calls.append(args)
        return select(*args, **how)

    monkeypatch.setattr(_find, "select", counted)
    structure = jprune.units(graph, by="multiply_adds")
    ranking = allocations.global_ranking()
    jprune.find_masks(params, 0.5, structure=structure, allocation=ranking)
    # What pools keep in any case, the ranking, and to fill up to multiples.
    assert len(calls) <= 3
