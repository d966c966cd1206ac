"""Dynamic sparse training: masks, moments, protocol."""

from typing import Any, NamedTuple

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import optax.contrib
import pytest
from jax.sharding import AxisType, NamedSharding
from jax.sharding import PartitionSpec as P
from test_optimizers import OPTIMIZERS, loss, make

import jprune
from jprune import allocations, criteria
from jprune.transforms._slots import find_slots

pytestmark = pytest.mark.filterwarnings(
    "ignore:`optimistic_adam` is deprecated:DeprecationWarning",
    "ignore:.seed. is deprecated:DeprecationWarning",
)


@jax.jit
def rewire_signed(params: Any, masks: Any, fraction: Any) -> Any:
    """One RigL update whose score of dropping is the weight with its sign."""
    signed = criteria.custom(lambda w: w)
    tx = jprune.rigl(
        optax.sgd(0.1), 0.5, drop=signed, fraction=fraction, every=1
    )
    state = tx.init(params)._replace(masks=masks)
    return tx.update(params, state, params)  # gradients equal to the weights


# google-research/jaxpruner, sparse_trainers_test.py, testRigLUpdateMask.
@pytest.mark.parametrize(
    ("fraction", "expected"),
    [
        (0.0, [0, 1, 0, 1, 0, 1, 1, 0]),
        (0.25, [1, 1, 0, 1, 0, 1, 0, 0]),
        (0.5, [1, 1, 0, 0, 1, 1, 0, 0]),
        (0.75, [1, 0, 1, 0, 1, 1, 0, 0]),
        (1.0, [1, 0, 1, 0, 1, 1, 0, 0]),
    ],
)
def test_golden_masks(fraction: float, expected: list[int]) -> None:
    params = jnp.array([[-9.0, 1, 4, -1, 5, 8, -2, 3]])
    masks = jnp.array([[0, 1, 0, 1, 0, 1, 1, 0]], bool)
    updates, state = rewire_signed(params, masks, fraction)
    assert state.masks[0].tolist() == [bool(x) for x in expected]
    assert not (params + updates)[~(masks & state.masks)].any()


@pytest.mark.parametrize(
    ("replace_step", "steps", "rewirings"),
    [
        (True, [1, 1, 1, 0, 1, 1, 0, 1, 1, 0, 1], [3, 6, 9]),  # published
        (False, [1] * 11, [3, 5, 7]),
    ],
)
def test_golden_schedule(
    replace_step: bool, steps: list[int], rewirings: list[int]
) -> None:
    tx = jprune.sparse_evolution(
        optax.chain(optax.sgd(1.0), optax.scale_by_schedule(lambda n: n + 1.0)),
        0.5,
        fraction=0.5,
        every=2,
        start=3,
        stop=7,
        replace_step=replace_step,
        where=r"kernel",
    )
    params = {"kernel": jnp.ones((8, 8)), "bias": jnp.zeros(())}
    grads = jax.tree.map(jnp.ones_like, params)
    state, update = tx.init(params), jax.jit(tx.update)
    stepped, rewired, n = [], [], 0
    for i in range(11):
        updates, after = update(grads, state, params)
        stepped.append(int(updates["bias"] != 0))
        n += stepped[-1]
        assert updates["bias"] == -n * stepped[-1]  # the inner count stands
        if bool(jnp.any(after.masks["kernel"] != state.masks["kernel"])):
            rewired.append(i)
        state = after
    assert stepped == steps
    assert rewired == rewirings


def best(scores: Any, first: Any, k: int) -> Any:
    """What is ``first``, then NaN, then the largest; ties in order."""
    index = np.arange(scores.size)
    order = np.lexsort((index, -scores, ~np.isnan(scores), ~first))
    chosen = np.zeros(scores.size, bool)
    chosen[order[:k]] = True
    return chosen


def rewired(mask: Any, w: Any, g: Any, fraction: Any) -> Any:
    """RigL, algorithm 1, of one leaf in NumPy."""
    w, g = (np.abs(np.asarray(x, np.float64)).ravel() for x in (w, g))
    flat, kept = mask.ravel(), int(mask.sum())
    left = best(w, flat, kept - round(float(fraction) * kept))
    return best(g, left, kept).reshape(mask.shape)


@pytest.mark.sweep(2)
@pytest.mark.parametrize(
    ("dtype", "kind"),
    [("float32", "plain"), ("float16", "ties"), ("float32", "nan")],
)
def test_masks_are_those_of_the_algorithm(dtype: str, kind: str) -> None:
    rng = np.random.default_rng(0)
    draw = lambda: {
        "a": rng.normal(size=(6, 10)),
        "b": rng.normal(size=(10, 5)),
    }
    ties = lambda t: jax.tree.map(lambda x: np.round(x), t)
    tx = jprune.rigl(
        optax.adam(0.1), 0.7, every=2, stop=8, allocation=allocations.uniform()
    )
    fraction = optax.cosine_decay_schedule(0.3, 8)
    params = jax.tree.map(lambda x: jnp.asarray(x, dtype), draw())
    state = tx.init(params)
    params = jprune.apply_masks(params, state.masks)
    update = jax.jit(tx.update)
    for count in range(10):
        grads = ties(draw()) if kind == "ties" else draw()
        if kind == "nan":
            grads["a"][2:4] = np.nan
        grads = jax.tree.map(lambda x: jnp.asarray(x, dtype), grads)
        updates, after = update(grads, state, params)
        for name, old in state.masks.items():
            old, new = np.asarray(old), np.asarray(after.masks[name])
            wanted = old
            if count % 2 == 0 and count <= 8:
                wanted = rewired(
                    old, params[name], grads[name], fraction(count)
                )
            np.testing.assert_array_equal(new, wanted, f"{name} at {count}")
            assert new.sum() == old.sum() == old.size - round(0.7 * old.size)
        if kind != "nan":
            params = optax.apply_updates(params, updates)
            if kind == "ties":
                params = jax.tree.map(jnp.round, params)
        state = after


class SpyState(NamedTuple):
    """What the inner optimizer was shown."""

    grads: Any
    values: Any
    grad: Any


def spy() -> optax.GradientTransformationExtraArgs:
    def init(params: Any) -> SpyState:
        return SpyState(params, params, params)

    def update(grads: Any, state: Any, params: Any, *, grad: Any) -> Any:
        return grads, SpyState(grads, params, grad)

    return optax.GradientTransformationExtraArgs(init, update)


def test_the_inner_optimizer_sees_nothing_of_pruned_weights() -> None:
    params = {"a": jnp.full((6, 6), jnp.nan), "bias": jnp.ones(3)}
    tx = jprune.rigl(spy(), 0.5, fraction=0.0)
    state = tx.init(params)
    pruned = ~np.asarray(state.masks["a"])
    assert not np.asarray(state.inner.values["a"])[pruned].any()
    grads = jax.tree.map(lambda p: jnp.full_like(p, jnp.inf), params)
    _, state = tx.update(grads, state, params, grad=grads)
    for seen in state.inner:
        assert not np.asarray(seen["a"])[pruned].any()
        assert not np.isfinite(np.asarray(seen["a"])[~pruned]).any()
    assert np.isinf(state.inner.grads["bias"]).all()


INNER: dict[str, Any] = {
    "adagrad": lambda: optax.adagrad(0.1),  # starts at .1
    "amsgrad_chain": lambda: optax.chain(
        optax.clip_by_global_norm(1.0), optax.amsgrad(0.1)
    ),
    "partition": lambda: optax.partition(
        {"x": optax.yogi(0.1), "y": optax.sgd(0.1, momentum=0.9)},
        {"a": "x", "bias": "y", "b": "y"},
    ),
    "masked": lambda: optax.masked(
        optax.lion(0.1), {"a": True, "bias": False, "b": True}
    ),
    "sm3": lambda: optax.sm3(0.1),
    "muon": lambda: optax.contrib.muon(0.1),
    "noisy": lambda: optax.chain(
        optax.add_noise(0.1, 0.5, key=0), optax.trace(0.9)
    ),
    "schedule_free": lambda: optax.contrib.schedule_free(
        optax.sgd(0.1), 0.1, b1=0.9
    ),
    "injected": lambda: optax.inject_hyperparams(optax.rmsprop)(0.1),
    "lbfgs": lambda: optax.lbfgs(0.1, memory_size=3, linesearch=None),
}
QUICK = ("adagrad", "lbfgs")


def inner_params() -> Any:
    keys = jax.random.split(jax.random.key(0), 2)
    return {
        "a": jax.random.normal(keys[0], (6, 4)),
        "bias": jnp.ones(4),
        "b": jax.random.normal(keys[1], (4, 8)),
    }


def check_slots(inner: Any, least: int = 1, **extra: Any) -> None:
    """Slots of pruned and of new weights are those of ``inner.init``."""
    tx = jprune.sparse_evolution(
        inner,
        0.5,
        fraction=0.5,
        every=2,
        start=1,
        allocation=allocations.uniform(),
    )
    params = inner_params()
    state = tx.init(params)
    zeros = jax.tree.map(jnp.zeros_like, params)
    grown = False
    update = jax.jit(lambda *args: tx.update(*args, **extra))
    for i in range(5):
        grads = jax.tree.map(lambda p: jnp.cos(7 * p + i), params)  # noqa: B023
        updates, after = update(grads, state, params)
        params = optax.apply_updates(params, updates)
        for name in ("a", "b"):
            old, new = (np.asarray(s.masks[name]) for s in (state, after))
            assert new.sum() == old.sum() == old.size // 2
            grown |= bool((new & ~old).any())
            active = old & new
            assert not np.asarray(params[name])[~active].any()
            fresh = inner.init(zeros)
            assert compare_slots(after.inner, fresh, name, active) >= least
        state = after
    assert grown


def compare_slots(state: Any, fresh: Any, name: str, active: Any) -> int:
    """Compares all arrays under ``name`` that end in the weights' shape."""
    pairs = zip(
        jax.tree_util.tree_flatten_with_path(state)[0],
        jax.tree.leaves(fresh),
        strict=True,
    )
    compared = 0
    for (path, value), start in pairs:
        keys = [getattr(k, "key", None) for k in path]
        if name in keys and np.shape(value)[-2:] == active.shape:
            np.testing.assert_array_equal(
                np.asarray(value)[..., ~active],
                np.asarray(start)[..., ~active],
                err_msg=jax.tree_util.keystr(path),
            )
            compared += 1
    return compared


@pytest.mark.slow
@pytest.mark.parametrize(
    "name",
    [
        pytest.param(n, marks=[] if n in QUICK else pytest.mark.slow)
        for n in INNER
    ],
)
def test_slots_of_new_connections_are_fresh(name: str) -> None:
    check_slots(INNER[name]())


@pytest.mark.slow
@pytest.mark.parametrize(
    "name", sorted(set(OPTIMIZERS) - {"dpsgd", "galore", "lbfgs"})
)
def test_slots_under_every_optimizer(name: str) -> None:
    extra: dict[str, Any] = {"value": 1.0, "value_fn": loss}
    if name == "sophia":
        extra = {"obj_fn": loss}
    inner = make(name)
    slots = find_slots("", inner, inner_params(), inner_params())
    some = any(slot.kind == "weights" for slot in slots.values())
    check_slots(inner, least=int(some), **extra)


@pytest.mark.slow
def test_line_search_of_lbfgs() -> None:
    """Its `init` takes no tree without leaves, so that slots are found else."""
    inner = optax.lbfgs(memory_size=3)
    slots = find_slots("", inner, inner_params(), inner_params())
    assert slots["2/grad/a"].kind == "weights"
    assert slots["2/learning_rate"].kind == "global"
    uniform = jprune.allocations.uniform()
    tx = jprune.rigl(
        inner, 0.5, fraction=0.3, every=3, stop=9, allocation=uniform
    )
    params = inner_params()
    state = tx.init(params)
    fresh = inner.init(jax.tree.map(jnp.zeros_like, params))

    def loss(params: Any) -> Any:
        away = jax.tree.map(lambda p: jnp.sum(jnp.cosh(p - 1)), params)
        return away["a"] + 5 * away["b"] + away["bias"]

    @jax.jit
    def step(params: Any, state: Any) -> Any:
        value, grads = jax.value_and_grad(loss)(params)
        updates, state = tx.update(
            grads, state, params, value=value, grad=grads, value_fn=loss
        )
        return optax.apply_updates(params, updates), state

    grown = False
    for _ in range(20):
        old = np.asarray(state.masks["a"])
        params, state = step(params, state)
        active = old & np.asarray(state.masks["a"])
        grown |= bool(np.any(active != old))
        assert not np.asarray(params["a"])[~active].any()
        assert compare_slots(state.inner, fresh, "a", active) == 5
    assert grown
    np.testing.assert_allclose(params["a"][active], 1, rtol=1e-2)


@pytest.mark.parametrize("params", [inner_params(), [*inner_params().values()]])
def test_slots_are_found_in_any_state(params: Any) -> None:
    """That of an `init` that takes no tree without leaves, in a partition."""
    labels = jax.tree.map(lambda p: "x" if p.ndim == 2 else "y", params)
    parts = {"x": optax.lbfgs(), "y": optax.sgd(0.1)}
    inner = optax.partition(parts, labels)
    slots = find_slots("", inner, params, params)
    for path, p in jax.tree_util.tree_flatten_with_path(params)[0]:
        end = jax.tree_util.keystr(path, simple=True)
        of = {n: s for n, s in slots.items() if n.endswith(f"/{end}")}
        assert len(of) == (5 if p.ndim == 2 else 0)
        assert all(slot.active is p for slot in of.values())


class Listed(NamedTuple):
    """A state that has lists of slots, in another order."""

    noise: Any
    slots: Any


@pytest.mark.parametrize("size", [2, 3])
def test_equal_shapes_are_told_apart(size: int) -> None:
    """Of parameters in a tuple, or slots in a list without their paths."""
    params = tuple(jnp.full((size, size), i) for i in range(3))
    chain = optax.chain(optax.trace(0.9), optax.adam(0.1))
    for name, slot in find_slots("", chain, params, params).items():
        if slot.kind == "weights":
            assert slot.active is params[int(name[-1])], name

    def init(params: Any) -> Listed:
        zeros = map(jnp.zeros_like, jax.tree.leaves(params)[::-1])
        return Listed(jnp.zeros((size, size)), list(zeros))

    tree = dict(zip("abc", params, strict=True))
    inner = optax.GradientTransformation(init, optax.identity().update)
    slots = find_slots("", inner, tree, tree)
    assert slots.pop("noise").kind == "global"
    assert [slot.active for slot in slots.values()] == [*params[::-1]]
    alone = find_slots("", inner, params[0], params[0])
    assert [slot.kind for slot in alone.values()] == ["global", "weights"]


def test_static_training_is_that_of_fixed_masks() -> None:
    params, inner = inner_params(), optax.adamw(0.1)
    static = jprune.sparse_evolution(inner, 0.5, fraction=0.0)
    one = static.init(params)
    masks = jprune.get_masks(one)
    fixed = optax.chain(inner, jprune.keep_masks(masks))
    params = jprune.apply_masks(params, masks)
    two, mine, theirs = fixed.init(params), params, params
    for _ in range(4):
        updates, one = static.update(jax.tree.map(jnp.cos, mine), one, mine)
        mine = optax.apply_updates(mine, updates)
        updates, two = fixed.update(jax.tree.map(jnp.cos, theirs), two, theirs)
        theirs = optax.apply_updates(theirs, updates)
    chex.assert_trees_all_close(mine, theirs, rtol=1e-6)
    chex.assert_trees_all_equal(one.masks, masks)


def test_one_ranking_keeps_its_total() -> None:
    ranking = allocations.global_ranking()
    tx = jprune.rigl(
        optax.sgd(0.1), 0.7, fraction=0.4, every=1, allocation=ranking
    )
    params = inner_params()
    state, update = tx.init(params), jax.jit(tx.update)
    sizes = set()
    for i in range(4):
        grads = {
            "a": params["a"],
            "b": params["b"] * 10**i,
            "bias": jnp.ones(4),
        }
        _, state = update(grads, state, params)
        kept = {name: int(state.masks[name].sum()) for name in ("a", "b")}
        sizes.add(kept["a"])
        assert sum(kept.values()) == 56 - round(0.7 * 56)
    assert len(sizes) > 1


def test_keys_may_differ_from_model_to_model() -> None:
    params = jnp.ones((3, 6, 6))

    def step(params: Any, key: Any) -> Any:
        tx = jprune.sparse_evolution(
            optax.sgd(0.1), 0.5, fraction=0.5, every=1, key=key
        )
        first = tx.init(params)
        return first.masks, tx.update(params, first, params)[1].masks

    keys = jax.random.split(jax.random.key(0), 3)
    together = jax.jit(jax.vmap(step))(params, keys)
    alone = step(params[1], keys[1])
    for masks, mine in zip(together, alone, strict=True):
        chex.assert_trees_all_equal(masks[1], mine)
        assert np.all(masks.sum((1, 2)) == 18)
        assert not np.array_equal(masks[0], masks[1])


@pytest.mark.parametrize("transform", ["rewire", "prune"])
def test_models_with_counts_of_their_own_search_only_when_due(
    transform: str,
) -> None:
    scored = []

    def score(w: Any) -> Any:
        jax.debug.callback(lambda: scored.append(1))
        return jnp.abs(w)

    def rising(count: Any) -> Any:
        return jnp.minimum(0.3 + 0.1 * count, 0.9)

    spied = criteria.custom(score)
    tx = (
        jprune.rewire(optax.sgd(0.1), 0.5, grow=spied, fraction=0.5, every=3)
        if transform == "rewire"
        else jprune.prune(rising, criterion=spied, every=3)
    )
    models = jnp.stack([jnp.ones((4, 4)), -jnp.ones((4, 4))])
    state, update = jax.vmap(tx.init)(models), jax.jit(jax.vmap(tx.update))
    assert state.count.shape == (2,)
    due = []
    for _ in range(5):
        _, state = update(models, state, models)
        jax.effects_barrier()
        due.append(bool(scored))
        scored.clear()
    assert due == [True, False, False, True, False]


@pytest.mark.slow
@pytest.mark.parametrize("kind", [AxisType.Auto, AxisType.Explicit])
def test_meshes(kind: AxisType) -> None:
    tx = jprune.sparse_evolution(
        optax.adam(0.1), 0.5, fraction=0.5, every=1, replace_step=True
    )

    @jax.jit
    def update(params: Any, state: Any) -> Any:
        grads = jax.tree.map(jnp.cos, params)
        updates, state = tx.update(grads, state, params)
        return optax.apply_updates(params, updates), state

    def run(params: Any) -> Any:
        state = tx.init(params)
        for _ in range(4):
            params, state = update(params, state)
        return params, state

    params = {"a": jax.random.normal(jax.random.key(0), (8, 16))}
    alone = run(params)
    mesh = jax.make_mesh((8,), ("x",), axis_types=(kind,))
    with jax.set_mesh(mesh):
        sharding = NamedSharding(mesh, P(None, "x"))
        landed, state = run(jax.device_put(params, sharding))
    for x in (landed, state.masks, state.inner[0].mu):
        assert x["a"].sharding.is_equivalent_to(sharding, 2)
    together = jax.tree.map(np.asarray, (landed, state))
    chex.assert_trees_all_close(together, alone, rtol=1e-6)
    chex.assert_trees_all_equal(together[1].masks, alone[1].masks)


def test_outside_and_inside_of_multi_steps() -> None:
    tx = optax.MultiSteps(
        jprune.rigl(optax.adam(0.1), 0.5, fraction=0.5, every=1), 2
    )
    params = inner_params()
    state, update = tx.init(params), jax.jit(tx.update)
    for i in range(4):
        before = jprune.get_masks(state)
        updates, state = update(params, state, params)
        same = chex.assert_trees_all_equal
        if i % 2 == 0:
            same(before, jprune.get_masks(state))
    masks = jprune.get_masks(state)
    landed = optax.apply_updates(params, updates)
    assert not np.asarray(landed["a"])[~np.asarray(masks["a"])].any()
    with pytest.raises(ValueError, match="goes inside `MultiSteps`"):
        jprune.rigl(tx, 0.5, fraction=0.5)


@pytest.mark.parametrize("method", [jprune.rigl, jprune.sparse_evolution])
def test_options_can_be_injected(method: Any) -> None:
    tx = optax.inject_hyperparams(
        method,
        static_args=(
            "inner",
            "every",
            "stop",
            "structure",
            "allocation",
            "drop",
        ),
        hyperparam_dtype=jnp.float32,
    )(optax.sgd(0.1), sparsity=0.5, fraction=0.25, every=2, stop=9, start=0)
    params = jnp.ones((4, 4))
    assert int(jprune.get_masks(tx.init(params)).sum()) == 8
