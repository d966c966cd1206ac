"""Every transform meets every demand: a table of transforms x demands."""

from collections.abc import Callable
from functools import cache, partial
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
from jprune import allocations, criteria, projections

CUBIC = optax.polynomial_schedule(0.0, 0.9, 3, 4, 0)


def make_params(dtype: Any = jnp.float32) -> Any:
    keys = jax.random.split(jax.random.key(0), 3)
    return {
        "a": {
            "kernel": jax.random.normal(keys[0], (8, 16)).astype(dtype),
            "bias": jnp.linspace(-1, 1, 16).astype(dtype),
        },
        "b": {"kernel": jax.random.normal(keys[1], (16, 8)).astype(dtype)},
    }


MASKS = jprune.find_masks(make_params(), 0.6)

Factory = Callable[[], optax.GradientTransformationExtraArgs]

TRANSFORMS: dict[str, Factory] = {
    "keep_masks": lambda: jprune.keep_masks(MASKS),
    "prune": lambda: jprune.prune(0.6),
    "prune_gradually": lambda: jprune.prune(CUBIC, every=2),
    "prune_globally": lambda: jprune.prune(
        CUBIC, allocation=allocations.global_ranking()
    ),
    "prune_at_random": lambda: jprune.prune(CUBIC, criterion=criteria.random()),
    "rewire_never": lambda: jprune.sparse_evolution(
        optax.identity(), 0.6, fraction=0.0
    ),
    "rewire_by_gradient": lambda: jprune.rigl(
        optax.identity(), 0.6, every=2, start=1, stop=5
    ),
    "rewire_at_random": lambda: jprune.sparse_evolution(
        optax.identity(), 0.6, fraction=0.3, every=2, start=1
    ),
    "prune_by_gradient": lambda: jprune.with_gradients(
        jprune.prune(0.6, criterion=criteria.gradient())
    ),
    "prune_by_taylor": lambda: jprune.with_gradients(
        jprune.prune(0.6, criterion=criteria.taylor())
    ),
    "prune_by_movement": lambda: jprune.with_gradients(
        jprune.prune(CUBIC, criterion=criteria.movement(), every=2)
    ),
    "prune_by_fisher": lambda: jprune.with_gradients(
        jprune.prune(CUBIC, criterion=criteria.fisher())
    ),
    "project": lambda: jprune.project(
        optax.projections.projection_non_negative
    ),
    "project_sometimes": lambda: jprune.project(
        optax.projections.projection_non_negative, every=2
    ),
    "project_frobenius_ball": lambda: jprune.project_frobenius_ball(1.0),
    "project_leaves": lambda: jprune.project_frobenius_ball(1.0, per="leaf"),
    "project_spectral_ball": lambda: jprune.project(
        projections.spectral_ball(1.0)
    ),
    "project_nuclear": lambda: jprune.project(projections.nuclear(0.1)),
    "project_l0_ball": lambda: jprune.project(projections.l0_ball(90)),
    "project_soft_threshold": lambda: jprune.project(
        projections.soft_threshold(0.1)
    ),
    "project_group_soft_threshold": lambda: jprune.project(
        projections.group_soft_threshold(0.1)
    ),
}

SINGULAR = ("project_spectral_ball", "project_nuclear")  # rounded to |W|
GRADUAL = (  # dense at first
    "prune_gradually",
    "prune_globally",
    "prune_at_random",
    "prune_by_movement",
    "prune_by_fisher",
)
QUICK = ("keep_masks", "prune_gradually", "project", "project_frobenius_ball")
MASKED = ("keep", "prune", "rewire")

every_transform = pytest.mark.parametrize(
    "name",
    [
        pytest.param(name, marks=[] if name in QUICK else pytest.mark.slow)
        for name in TRANSFORMS
    ],
)
every_dtype = pytest.mark.parametrize(
    "dtype", ["float16", "bfloat16", "float32", "float64"]
)


def grads_like(params: Any, count: Any = 0) -> Any:
    return jax.tree.map(
        lambda p: (jnp.cos(3 * p + count) * 0.1).astype(p.dtype), params
    )


@cache
def after_sgd(name: str) -> Any:
    """One for all tests: what is compiled of it is shared."""
    return optax.chain(optax.sgd(0.1), TRANSFORMS[name]())


@cache
def jitted_step(tx: Any) -> Any:
    @jax.jit
    def step(params: Any, state: Any, i: Any) -> Any:
        updates, state = tx.update(grads_like(params, i), state, params)
        return optax.apply_updates(params, updates), state

    return step


def run(tx: Any, params: Any, steps: int, state: Any = None) -> Any:
    """Params and state after some jitted steps."""
    state = tx.init(params) if state is None else state
    step = jitted_step(tx)
    for i in range(steps):
        params, state = step(params, state, i)
    return params, state


def check_effect(name: str, params: Any, state: Any, tolerance: float) -> None:
    """What the transform is for holds after a step."""
    if name.startswith(MASKED):
        masks = jprune.get_masks(state)
        for p, m in zip(
            [params["a"]["kernel"], params["b"]["kernel"]],
            [masks["a"]["kernel"], masks["b"]["kernel"]],
            strict=True,
        ):
            assert not np.any(np.asarray(p)[~np.asarray(m)])
        assert 0 < float(jprune.measure_sparsity(masks)) < 1
    elif name == "project":
        assert all(np.all(np.asarray(p) >= 0) for p in jax.tree.leaves(params))
    elif name == "project_frobenius_ball":
        wide = jax.tree.map(lambda p: np.asarray(p, np.float64), params)
        norm = np.sqrt(sum((p**2).sum() for p in jax.tree.leaves(wide)))
        assert norm <= 1 + tolerance
    elif name == "project_leaves":
        for p in jax.tree.leaves(params):
            norm = np.linalg.norm(np.asarray(p, np.float64))
            assert norm <= 1 + tolerance
    elif name == "project_spectral_ball":
        for p in jax.tree.leaves(params):
            wide = np.asarray(p, np.float64).reshape(-1, p.shape[-1])
            assert np.linalg.norm(wide, 2) <= 1 + tolerance
    elif name == "project_l0_ball":
        assert sum(np.count_nonzero(p) for p in jax.tree.leaves(params)) <= 90


@pytest.mark.sweep(4)
@every_transform
def test_jit_agrees_with_eager(name: str) -> None:
    params, tx = make_params(), TRANSFORMS[name]()
    state = tx.init(params)
    grads = grads_like(params)
    eager = tx.update(grads, state, params)
    jitted = jax.jit(tx.update)(grads, state, params)
    chex.assert_trees_all_close(eager, jitted, rtol=1e-6)
    if name.startswith(MASKED):
        chex.assert_trees_all_equal(eager, jitted)


@every_transform
def test_scan_agrees_with_a_loop(name: str) -> None:
    params, tx = make_params(), after_sgd(name)

    def step(carry: Any, i: Any) -> Any:
        params, state = carry
        updates, state = tx.update(grads_like(params, i), state, params)
        return (optax.apply_updates(params, updates), state), None

    looped = run(tx, params, 4)
    (scanned, state), _ = jax.jit(partial(jax.lax.scan, step))(
        (params, tx.init(params)), jnp.arange(4)
    )
    chex.assert_trees_all_close(looped, (scanned, state), rtol=1e-6)
    check_effect(name, scanned, state, 1e-6)


@pytest.mark.parametrize(
    ("make", "values"),
    [
        (jprune.prune, [0.25, 0.5, 0.75]),
        (
            partial(jprune.prune, allocation=allocations.global_ranking()),
            [0.25, 0.5, 0.75],
        ),
        (
            partial(jprune.rigl, optax.identity(), fraction=0.25, every=1),
            [0.25, 0.5, 0.75],
        ),
        (jprune.project_frobenius_ball, [0.5, 1.0, 100.0]),
    ],
)
@pytest.mark.sweep(4)
def test_vmap_over_the_number(make: Any, values: list[float]) -> None:
    params = make_params()

    def train(number: Any) -> Any:
        tx = optax.chain(optax.sgd(0.1), make(number))
        updates, _ = tx.update(grads_like(params), tx.init(params), params)
        return optax.apply_updates(params, updates)

    together = jax.jit(jax.vmap(train))(jnp.array(values))
    for i, value in enumerate(values):
        alone = jax.jit(train)(value)
        mine = jax.tree.map(lambda x: x[i], together)  # noqa: B023
        chex.assert_trees_all_close(mine, alone, rtol=1e-5, atol=1e-6)
        concrete = train(value)  # quarters are exact: the same counts
        chex.assert_trees_all_close(alone, concrete, rtol=1e-5, atol=1e-6)


@every_transform
def test_vmap_over_models(name: str) -> None:
    tx = TRANSFORMS[name]()
    models = jax.tree.map(lambda p: jnp.stack([p, 2 * p, -p]), make_params())

    def step(params: Any) -> Any:
        updates, _ = tx.update(grads_like(params), tx.init(params), params)
        return optax.apply_updates(params, updates)

    together = jax.jit(jax.vmap(step))(models)
    second = step(jax.tree.map(lambda p: p[1], models))
    atol = 1e-5 if name in SINGULAR else 1e-6
    chex.assert_trees_all_close(
        jax.tree.map(lambda p: p[1], together), second, rtol=1e-5, atol=atol
    )


def test_vmap_chooses_when_due() -> None:
    """A ``cond`` of a mapped predicate would choose at every step."""
    chosen = []

    def score(params: Any) -> Any:
        jax.debug.callback(lambda: chosen.append(1))
        return jax.tree.map(jnp.abs, params)

    tx = jprune.prune(CUBIC, criterion=criteria.custom(score), every=4)
    models = jax.tree.map(lambda p: jnp.stack([p, 2 * p, -p]), make_params())

    def train(params: Any) -> Any:
        def step(state: Any, _: None) -> tuple[Any, None]:
            return tx.update(params, state, params)[1], None

        return jax.lax.scan(step, tx.init(params), length=10)[0].masks

    jax.block_until_ready(jax.jit(jax.vmap(train))(models))
    jax.effects_barrier()
    assert len(chosen) == 1  # at 4 of 0, 4, 8, where counts differ


@every_transform
def test_no_second_compilation(name: str) -> None:
    params, tx = make_params(), TRANSFORMS[name]()
    traces = 0

    @jax.jit
    def step(params: Any, state: Any) -> Any:
        nonlocal traces
        traces += 1
        updates, state = tx.update(grads_like(params), state, params)
        return optax.apply_updates(params, updates), state

    state = tx.init(params)
    for _ in range(3):
        params, state = step(params, state)
    assert traces == 1


@every_transform
@every_dtype
@pytest.mark.sweep(4)
def test_dtypes(name: str, dtype: str) -> None:
    with jax.enable_x64(dtype == "float64"):
        params = make_params(jnp.dtype(dtype))
        tx = optax.chain(optax.sgd(0.1, momentum=0.9), TRANSFORMS[name]())
        state = tx.init(params)
        updates, _ = jax.eval_shape(
            tx.update, grads_like(params), state, params
        )
        chex.assert_trees_all_equal_dtypes(updates, params)
        params, state = run(tx, params, 3)
        tolerance = 40 * float(jnp.finfo(dtype).eps)
        check_effect(name, params, state, tolerance)


@every_transform
@pytest.mark.parametrize(
    ("update", "parameter", "result"),
    [
        ("bfloat16", "float32", "float32"),
        ("float16", "bfloat16", "float32"),
        ("float32", "bfloat16", "float32"),
        ("float32", "float16", "float32"),
    ],
)
@pytest.mark.sweep(4)
def test_mixed_dtypes(
    name: str, update: str, parameter: str, result: str
) -> None:
    params, tx = make_params(jnp.dtype(parameter)), TRANSFORMS[name]()
    updates = jax.tree.map(
        lambda p: p.astype(update), grads_like(make_params())
    )
    updates["a"]["bias"] = jnp.zeros(16, parameter)
    moved, state = jax.jit(tx.update)(updates, tx.init(params), params)
    assert moved["a"]["kernel"].dtype == jnp.dtype(result)
    landed = optax.apply_updates(params, moved)
    chex.assert_trees_all_equal_dtypes(landed, params)
    if name not in GRADUAL:
        check_effect(name, landed, state, 40 * float(jnp.finfo(parameter).eps))


@every_transform
def test_masked_and_partition(name: str) -> None:
    params = make_params()
    kernels = {"a": {"kernel": True, "bias": False}, "b": {"kernel": True}}
    labels = jax.tree.map(lambda k: "pruned" if k else "free", kernels)
    masked = optax.chain(
        optax.sgd(0.1), optax.masked(TRANSFORMS[name](), kernels)
    )
    split = optax.partition(
        {
            "pruned": optax.chain(optax.sgd(0.1), TRANSFORMS[name]()),
            "free": optax.sgd(0.1),
        },
        labels,
    )
    one, state = run(masked, params, 4)
    two, other = run(split, params, 4)
    chex.assert_trees_all_close(one, two, rtol=1e-6)
    if name.startswith(MASKED):
        check_effect(name, one, state, 0.0)
        check_effect(name, two, other, 0.0)
        plain, _ = run(after_sgd(name), params, 4)
        chex.assert_trees_all_close(plain, one, rtol=1e-6)


@every_transform
@pytest.mark.sweep(2)
def test_multi_steps(name: str) -> None:
    tx = optax.MultiSteps(
        optax.chain(optax.sgd(0.1), TRANSFORMS[name]()), every_k_schedule=2
    )
    first, state = run(tx, make_params(), 1)
    chex.assert_trees_all_equal(first, make_params())  # nothing emitted yet
    params, state = run(tx, make_params(), 6)
    check_effect(name, params, state, 1e-6)


INJECTED: dict[str, Any] = {
    "keep_masks": (jprune.keep_masks, (), {"masks": MASKS}),
    "prune": (
        jprune.prune,
        ("criterion", "structure", "allocation", "where"),
        {"sparsity": 0.5},
    ),
    "prune_gradually": (
        jprune.prune,
        ("criterion", "structure", "allocation", "where"),
        {"sparsity": CUBIC, "every": 2},
    ),
    "project": (
        jprune.project,
        ("projection",),
        {"projection": optax.projections.projection_non_negative},
    ),
    "project_frobenius_ball": (
        jprune.project_frobenius_ball,
        (),
        {"radius": 1.0},
    ),
}


@pytest.mark.parametrize("name", list(INJECTED))
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.sweep(4)
def test_inject_hyperparams(name: str, dtype: str) -> None:
    factory, static, arguments = INJECTED[name]
    params = make_params(jnp.dtype(dtype))
    inject = optax.inject_hyperparams(
        factory, static_args=static, hyperparam_dtype=jnp.float32
    )
    plain = optax.chain(optax.sgd(0.1), factory(**arguments))
    injected = optax.chain(optax.sgd(0.1), inject(**arguments))
    one, _ = run(plain, params, 4)
    two, state = run(injected, params, 4)
    chex.assert_trees_all_close(one, two, rtol=1e-5)
    check_effect(name, two, state, 40 * float(jnp.finfo(dtype).eps))


def test_an_injected_sparsity_can_be_raised_by_hand() -> None:
    tx = optax.inject_hyperparams(
        jprune.prune,
        static_args=("criterion", "structure", "allocation", "where"),
        hyperparam_dtype=jnp.float32,
    )(0.25)
    params = make_params()
    params, state = run(tx, params, 1)
    assert float(jprune.measure_sparsity(jprune.get_masks(state))) == 0.25
    state.hyperparams["sparsity"] = jnp.float32(0.75)
    params, state = run(tx, params, 1, state)
    assert float(jprune.measure_sparsity(jprune.get_masks(state))) == 0.75


@pytest.mark.sweep(2)
@every_transform
def test_apply_if_finite(name: str) -> None:
    inner = optax.chain(optax.sgd(0.1), TRANSFORMS[name]())
    tx = optax.apply_if_finite(inner, max_consecutive_errors=5)
    params, state = run(tx, make_params(), 3)
    check_effect(name, params, state, 1e-6)
    poison = jax.tree.map(lambda p: jnp.full_like(p, jnp.nan), params)
    updates, _ = jax.jit(tx.update)(poison, state, params)
    chex.assert_trees_all_equal(optax.apply_updates(params, updates), params)


@every_transform
def test_map_params(name: str) -> None:
    params, tx = make_params(), TRANSFORMS[name]()
    state = tx.init(params)
    chex.assert_trees_all_equal(
        optax.tree.map_params(tx, lambda x: x, state), state
    )
    specs = jax.tree.map(lambda p: f"spec of {p.shape}", params)
    mapped = optax.tree.map_params(
        tx,
        lambda x, spec: spec,
        state,
        specs,
        transform_non_params=lambda x: "other",
        is_leaf=lambda x: isinstance(x, optax.MaskedNode),
    )
    if "masks" in mapped._fields:
        assert mapped.masks == specs
    if "count" in mapped._fields:
        assert mapped.count == "other"


@every_transform
def test_unknown_extra_arguments(name: str) -> None:
    params, tx = make_params(), TRANSFORMS[name]()
    updates, _ = tx.update(
        grads_like(params), tx.init(params), params, value=1.0, unheard_of=2
    )
    chex.assert_trees_all_equal_structs(updates, params)


@every_transform
@pytest.mark.parametrize("empty", [{}, (), None, {"a": None}])
def test_empty_tree(name: str, empty: Any) -> None:
    tx = TRANSFORMS[name]()
    state = tx.init(empty)
    if empty is None:
        return  # update(params=None) means that they are missing
    updates, state = jax.jit(tx.update)(empty, state, empty)
    assert updates == empty


@every_transform
def test_donation(name: str) -> None:
    params = make_params()
    masks = jprune.find_masks(params, 0.6)
    tx = (
        jprune.keep_masks(masks) if name == "keep_masks" else TRANSFORMS[name]()
    )
    tx = optax.chain(optax.adam(1e-2), tx)

    @partial(jax.jit, donate_argnums=(0, 1))
    def step(params: Any, state: Any) -> Any:
        updates, state = tx.update(grads_like(params), state, params)
        return optax.apply_updates(params, updates), state

    for _ in range(2):  # a second run starts from the same transform
        mine = jax.tree.map(jnp.array, params)
        state = tx.init(mine)
        for _ in range(3):
            mine, state = step(mine, state)
    assert all(not m.is_deleted() for m in jax.tree.leaves(masks))
    check_effect(name, mine, state, 1e-6)
    chex.assert_trees_all_equal_shapes(mine, params)


@pytest.mark.sweep(4)
@every_transform
def test_restored_state_continues_bit_for_bit(name: str) -> None:
    tx = optax.chain(optax.adam(1e-2), TRANSFORMS[name]())
    params, state = run(tx, make_params(), 3)
    saved = jax.tree.map(np.asarray, (params, state))
    onward = run(tx, params, 3, state)
    fresh = optax.chain(optax.adam(1e-2), TRANSFORMS[name]())
    structure = jax.tree.structure((params, fresh.init(params)))
    restored = jax.tree.unflatten(structure, jax.tree.leaves(saved))
    again = run(fresh, jax.tree.map(jnp.asarray, restored[0]), 3, restored[1])
    chex.assert_trees_all_equal(onward, again)


@every_transform
@pytest.mark.parametrize("kind", [AxisType.Auto, AxisType.Explicit])
@pytest.mark.parametrize("spec", [P("x", None), P(None, "x")])
@pytest.mark.sweep(8)
def test_meshes(name: str, kind: AxisType, spec: Any) -> None:
    params, tx = make_params(), after_sgd(name)
    expected, alone = run(tx, params, 4)
    mesh = jax.make_mesh((8,), ("x",), axis_types=(kind,))
    with jax.set_mesh(mesh):
        specs = {"a": {"kernel": spec, "bias": P()}, "b": {"kernel": spec}}
        sharded = jax.tree.map(
            lambda p, s: jax.device_put(p, NamedSharding(mesh, s)),
            params,
            specs,
        )
        landed, state = run(tx, sharded, 4)
    assert landed["a"]["kernel"].sharding.is_equivalent_to(
        NamedSharding(mesh, spec), 2
    )
    atol = 1e-5 if name in SINGULAR else 1e-6
    chex.assert_trees_all_close(
        jax.tree.map(np.asarray, landed), expected, rtol=1e-5, atol=atol
    )
    if name.startswith(MASKED):
        masks = jprune.get_masks(state)
        chex.assert_trees_all_equal(
            jax.tree.map(np.asarray, masks), jprune.get_masks(alone)
        )
        assert masks["b"]["kernel"].sharding.is_equivalent_to(
            NamedSharding(mesh, spec), 2
        )


@pytest.mark.parametrize("kind", [AxisType.Auto, AxisType.Explicit])
@pytest.mark.sweep(2)
def test_offloaded(kind: AxisType) -> None:
    """Weights and masks in the memory of hosts, which the step fetches."""
    params = {"kernel": make_params()["a"]["kernel"]}
    tx = optax.chain(optax.sgd(0.1, 0.9), jprune.prune(0.5))
    mesh = jax.make_mesh((8,), ("x",), axis_types=(kind,))
    there = NamedSharding(mesh, P("x"), memory_kind="pinned_host")

    def to(space: Any, tree: Any) -> Any:
        return jax.tree.map(
            lambda x: jax.device_put(x, space) if x.ndim else x, tree
        )

    @partial(jax.jit, donate_argnums=(0, 1))
    def step(params: Any, state: Any) -> Any:
        params, state = to(jax.memory.Space.Device, (params, state))
        updates, state = tx.update(grads_like(params), state, params)
        params = optax.apply_updates(params, updates)
        return to(jax.memory.Space.Host, (params, state))

    with jax.set_mesh(mesh):
        placed = jax.device_put(params, there)
        state = tx.init(placed)
        for _ in range(2):
            before = jax.tree.leaves((placed, state))
            placed, state = step(placed, state)
            assert all(x.is_deleted() for x in before), "donated"
    mask = jprune.get_masks(state)["kernel"]
    for x in mask, placed["kernel"]:
        assert x.sharding.is_equivalent_to(there, 2)
        assert x.sharding.memory_kind == "pinned_host"
    wanted = jprune.find_masks(params, 0.5)["kernel"]
    np.testing.assert_array_equal(np.asarray(mask), wanted)
    assert not np.asarray(placed["kernel"])[~np.asarray(mask)].any()


@every_transform
@pytest.mark.optimized
def test_kept_updates_pass_bit_for_bit(name: str) -> None:
    params, tx = make_params(), TRANSFORMS[name]()
    updates = grads_like(params)
    moved, state = jax.jit(tx.update)(updates, tx.init(params), params)
    landed = optax.apply_updates(params, moved)
    if name.startswith(MASKED):
        masks = jprune.get_masks(state)
        for part in ("a", "b"):
            mask = np.asarray(masks[part]["kernel"])
            before = np.asarray(updates[part]["kernel"])[mask]
            after = np.asarray(moved[part]["kernel"])[mask]
            assert before.tobytes() == after.tobytes()
    elif name == "project":
        same = np.asarray(params["b"]["kernel"] + updates["b"]["kernel"]) >= 0
        before = np.asarray(updates["b"]["kernel"])[same]
        assert (
            before.tobytes() == np.asarray(moved["b"]["kernel"])[same].tobytes()
        )
        assert not np.all(same)
    else:
        chex.assert_tree_all_finite(landed)


@every_transform
def test_grad_through_the_update(name: str) -> None:
    params, tx = make_params(), TRANSFORMS[name]()
    state = tx.init(params)

    def loss(updates: Any) -> Any:
        moved, _ = tx.update(updates, state, params)
        return sum(jnp.sum(jnp.square(x)) for x in jax.tree.leaves(moved))

    chex.assert_tree_all_finite(jax.jit(jax.grad(loss))(grads_like(params)))
