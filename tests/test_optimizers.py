"""Every optimizer of optax, with a pruner as the last link of its chain."""

import inspect
import os
import subprocess
import sys
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import optax.contrib
import pytest

import jprune

KEY = jax.random.key(0)

# Takes a learning rate and is no optimizer by itself, and why it is not here.
EXCLUDED = {
    "schedule_free": "a wrapper: test_outside_of_wrappers",
    "scale_by_learning_rate": "one link: a factor",
    "scale_by_rprop": "one link: rprop",
    "scale_by_madgrad": "one link: madgrad",
    "scale_by_polyak": "one link: polyak_sgd",
    "scale_by_backtracking_linesearch": "a line search: lbfgs has one",
    "scale_by_zoom_linesearch": "a line search: lbfgs has one",
}
# What an optimizer must be given beside the defaults of this file.
ARGUMENTS: dict[str, dict[str, Any]] = {
    "dpsgd": {"l2_norm_clip": 1.0, "noise_multiplier": 0.1, "seed": 0},
    "galore": {"rank": 2},
    "noisy_sgd": {"key": KEY},
    "polyak_sgd": {"max_learning_rate": 1.0},
    "rmsprop": {"momentum": 0.9},
    "sgd": {"momentum": 0.9},
}
CORE = ("sgd", "muon", "momo")  # AdamW and Lion have tests below
# LLVM contracts the last a * b + c of these in another way when the negated
# parameter is in the same loop (equal bits without contraction, that is with
# XLA_FLAGS=--xla_cpu_max_isa=AVX), so they are compared operation by operation.
FUSED_MAY_DIFFER = "max_isa=AVX" not in os.environ.get("XLA_FLAGS", "")
CONTRACTED = ["schedule_free", "schedule_free_adamw", "schedule_free_sgd"]
if jax.__version_info__ >= (0, 11):  # of JAX 0.12, on some CPUs and not on all
    CONTRACTED.append("muon")

pytestmark = [
    pytest.mark.optimized,
    pytest.mark.filterwarnings(
        "ignore:`optimistic_adam` is deprecated:DeprecationWarning",
        "ignore:.seed. is deprecated:DeprecationWarning",  # dpsgd has no other
    ),
]


def find_optimizers() -> dict[str, Any]:
    """Public functions with a learning rate among their parameters."""
    found = {}
    for module in (optax, optax.contrib):
        for name, function in inspect.getmembers(module, inspect.isfunction):
            parameters = inspect.signature(function).parameters
            takes_rate = any(p.endswith("learning_rate") for p in parameters)
            if takes_rate and not name.startswith("_"):
                found[name] = function
    return found


OPTIMIZERS = {n: f for n, f in find_optimizers().items() if n not in EXCLUDED}


def make(name: str) -> optax.GradientTransformationExtraArgs:
    arguments = dict(ARGUMENTS.get(name, {}))
    parameters = inspect.signature(OPTIMIZERS[name]).parameters
    rate = parameters.get("learning_rate")
    if rate is not None and rate.default is inspect.Parameter.empty:
        arguments["learning_rate"] = 0.05
    return optax.with_extra_args_support(OPTIMIZERS[name](**arguments))


def make_params(dtype: Any = jnp.float32) -> Any:
    shapes = {"a": (6, 4), "bias": (4,), "b": (4, 8)}
    keys = jax.random.split(KEY, len(shapes))
    return {
        name: jax.random.normal(key, shape, dtype)
        for key, (name, shape) in zip(keys, shapes.items(), strict=True)
    }


def loss(params: Any) -> jax.Array:
    """Curved, coupled, and not at its best where weights are zero."""
    x = jnp.linspace(-1, 1, 18).reshape(3, 6).astype(params["a"].dtype)
    hidden = jnp.tanh(x @ params["a"] + params["bias"])
    return jnp.mean(jnp.square(hidden @ params["b"] - 1))


VALUE_AND_GRAD = jax.jit(jax.value_and_grad(loss))


def make_update(name: str, tx: Any) -> Any:
    """``jit(tx.update)`` with what the optimizer asks for."""

    def update(grads: Any, state: Any, params: Any, value: Any) -> Any:
        extra = {"value": value, "grad": grads, "value_fn": loss}
        if name == "sophia":
            extra = {"obj_fn": loss}
        if name in WRAPPERS:
            extra = {}
        return tx.update(grads, state, params, **extra)

    return (
        update if name in CONTRACTED and FUSED_MAY_DIFFER else jax.jit(update)
    )


def make_pruner(name: str, params: Any) -> Any:
    alike = jprune.allocations.uniform()  # counts are looked at leaf by leaf
    if name == "keep_masks":
        masks = jprune.find_masks(params, 0.6, allocation=alike)
        return jprune.keep_masks(masks)
    schedule = optax.polynomial_schedule(0.3, 0.8, 3, 4)
    return jprune.prune(schedule, allocation=alike, every=2)


def sparsity_at(name: str, step: int) -> float:
    schedule = optax.polynomial_schedule(0.3, 0.8, 3, 4)
    return 0.6 if name == "keep_masks" else float(schedule(step - step % 2))


def assert_same_bits(got: Any, wanted: Any) -> None:
    assert got.dtype == wanted.dtype
    np.testing.assert_array_equal(
        np.asarray(got).reshape(-1).view(np.uint8),
        np.asarray(wanted).reshape(-1).view(np.uint8),
    )


def check_step(masks: Any, params: Any, updates: Any, bare: Any) -> None:
    """Zeros are exact; what is kept moves as under the bare optimizer."""
    landed = optax.apply_updates(params, updates)
    for name, mask in masks.items():
        if isinstance(mask, optax.MaskedNode):
            assert_same_bits(updates[name], bare[name])
            continue
        kept = np.asarray(mask)
        assert not np.asarray(landed[name])[~kept].any(), name
        assert_same_bits(
            np.asarray(updates[name])[kept], np.asarray(bare[name])[kept]
        )


def check_optimizer(
    name: str, pruner: str, dtype: Any = jnp.float32, steps: int = 6
) -> None:
    params = make_params(dtype)
    bare = make(name)
    tx = optax.chain(bare, make_pruner(pruner, params))
    update, bare_update = make_update(name, tx), make_update(name, bare)
    state, start = tx.init(params), params
    for step in range(steps):
        value, grads = VALUE_AND_GRAD(params)
        if name == "dpsgd":  # takes a gradient for each example
            grads = jax.tree.map(lambda g: jnp.stack([g, 2 * g]), grads)
        wanted, _ = bare_update(grads, state[0], params, value)
        updates, state = update(grads, state, params, value)
        masks = jprune.get_masks(state)
        check_step(masks, params, updates, wanted)
        rate = sparsity_at(pruner, step)
        for leaf in ("a", "b"):
            lost = int(np.sum(~np.asarray(masks[leaf])))
            assert lost == round(rate * masks[leaf].size)
        params = optax.apply_updates(params, updates)
    if dtype == jnp.float32:  # in 16 bits the first steps of some are lost
        moved = [bool(jnp.any(params[n] != start[n])) for n in start]
        assert all(moved), f"{name} did nothing: the test is empty"
    assert all(bool(jnp.isfinite(p).all()) for p in params.values())


def test_exclusions_exist() -> None:
    assert set(find_optimizers()) >= set(EXCLUDED)
    assert set(OPTIMIZERS) >= set(ARGUMENTS) | set(CORE)
    assert len(OPTIMIZERS) >= 45


@pytest.mark.sweep(4)
@pytest.mark.parametrize("name", CORE)
def test_core_optimizers(name: str) -> None:
    check_optimizer(name, "prune")


@pytest.mark.parametrize("name", ["adamw", "lion"])
def test_core_with_fixed_masks(name: str) -> None:
    check_optimizer(name, "keep_masks")


@pytest.mark.slow
@pytest.mark.parametrize("pruner", ["keep_masks", "prune"])
@pytest.mark.parametrize("name", sorted(OPTIMIZERS))
def test_all_optimizers(name: str, pruner: str) -> None:
    check_optimizer(name, pruner)


@pytest.mark.slow
def test_bfloat16() -> None:
    check_optimizer("adamw", "prune", jnp.bfloat16)


@pytest.mark.slow
@pytest.mark.parametrize("pruner", ["keep_masks", "prune"])
@pytest.mark.parametrize("name", sorted(OPTIMIZERS))
def test_all_in_bfloat16(name: str, pruner: str) -> None:
    check_optimizer(name, pruner, jnp.bfloat16, steps=4)


@pytest.mark.slow
def test_without_contraction_no_optimizer_is_an_exception() -> None:
    command = [sys.executable, "-m", "pytest", "-q", "-x", "-m", "", __file__]
    which = "(schedule_free or muon) and not evaluation and not bfloat"
    command += ["-k", which]
    flags = os.environ.get("XLA_FLAGS", "") + " --xla_cpu_max_isa=AVX"
    environment = {**os.environ, "XLA_FLAGS": flags}
    subprocess.run(command, env=environment, check=True)


@pytest.mark.slow
@pytest.mark.parametrize(
    "name",
    [
        "muon",
        *(
            pytest.param(name, marks=pytest.mark.slow)
            for name in ("schedule_free_adamw", "schedule_free_sgd")
        ),
    ],
)
def test_where_bits_may_differ_numbers_do_not(name: str) -> None:
    params = make_params()
    bare = make(name)
    tx = optax.chain(bare, make_pruner("keep_masks", params))
    update, bare_update = jax.jit(tx.update), jax.jit(bare.update)
    state = tx.init(params)
    for _ in range(4):
        _, grads = VALUE_AND_GRAD(params)
        wanted, _ = bare_update(grads, state[0], params)
        updates, state = update(grads, state, params)
        masks = jprune.get_masks(state)
        for leaf in ("a", "b"):
            kept = np.asarray(masks[leaf])
            got, want = updates[leaf][kept], wanted[leaf][kept]
            np.testing.assert_allclose(got, want, rtol=1e-4, atol=1e-6)
        params = optax.apply_updates(params, updates)


def train(tx: Any, params: Any, steps: int = 7, of: Any = None) -> Any:
    """Parameters and states after each step; gradients at ``of(params)``."""
    update, state = jax.jit(tx.update), tx.init(params)
    for _ in range(steps):
        _, grads = VALUE_AND_GRAD(of(params) if of else params)
        updates, state = update(grads, state, params)
        params = optax.apply_updates(params, updates)
        yield params, state


def assert_zero(params: Any, masks: Any) -> None:
    """Pruned weights are exactly zero, and some weights are pruned."""
    leaves = jax.tree.leaves(jax.tree.map(lambda p, m: (p, m), params, masks))
    assert leaves
    for name in ("a", "b"):
        mask = np.asarray(masks[name])
        assert 0 < mask.sum() < mask.size
        assert not np.asarray(params[name])[~mask].any()


WRAPPERS = {
    "schedule_free": lambda: optax.contrib.schedule_free(
        optax.sgd(0.1), 0.1, b1=0.9
    ),
    "mechanize": lambda: optax.contrib.mechanize(optax.adamw(0.1)),
    "sam": lambda: optax.contrib.sam(
        optax.sgd(0.1, momentum=0.9),
        optax.chain(optax.contrib.normalize(), optax.sgd(0.05)),
    ),
}


@pytest.mark.sweep(4)
@pytest.mark.parametrize(
    "pruner", ["prune", pytest.param("keep_masks", marks=pytest.mark.slow)]
)
@pytest.mark.parametrize("wrapper", WRAPPERS)
def test_outside_of_wrappers(wrapper: str, pruner: str) -> None:
    params = make_params()
    tx = optax.chain(WRAPPERS[wrapper](), make_pruner(pruner, params))
    bare = make_update(wrapper, WRAPPERS[wrapper]())
    update, state = make_update(wrapper, tx), tx.init(params)
    for _ in range(5):
        value, grads = VALUE_AND_GRAD(params)
        wanted, _ = bare(grads, state[0], params, value)
        updates, state = update(grads, state, params, value)
        check_step(jprune.get_masks(state), params, updates, wanted)
        params = optax.apply_updates(params, updates)


def test_schedule_free_evaluation_parameters() -> None:
    params = make_params()
    tx = optax.chain(WRAPPERS["schedule_free"](), jprune.prune(0.5))
    *_, (params, state) = train(tx, params)
    dense = optax.contrib.schedule_free_eval_params(state[0], params)
    masks = jprune.get_masks(state)
    assert np.asarray(dense["a"])[~np.asarray(masks["a"])].all(), "why mask it"
    pruned = jprune.apply_masks(dense, masks)
    assert_zero(pruned, masks)
    assert_same_bits(pruned["bias"], dense["bias"])


def test_moving_average_of_parameters() -> None:
    params = make_params()
    tx = optax.chain(optax.adam(0.05), make_pruner("prune", params))
    ema = optax.ema(0.9)
    average: Any = None
    held = ema.init(params)
    for step in train(tx, params):
        after, state = step
        average, held = ema.update(after, held)
    masks = jprune.get_masks(state)
    lost = ~np.asarray(masks["a"])
    assert np.asarray(average["a"])[lost].any(), "why mask it"
    assert_zero(jprune.apply_masks(average, masks), masks)


@pytest.mark.sweep(4)
@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
@pytest.mark.parametrize("seen", ["master", "half"])
def test_master_copy_and_scaled_loss(seen: str, dtype: str) -> None:
    """Zeros are exact in both copies, if the pruner sees that of float32."""
    params = make_params()
    tx = optax.chain(optax.adamw(0.05), make_pruner("prune", params))

    @jax.jit
    def step(params: Any, state: Any, scale: Any) -> Any:
        half = optax.tree.cast(params, dtype)
        grads = jax.grad(lambda p: loss(p) * scale.astype(dtype))(half)
        grads = optax.tree.cast(grads, jnp.float32)
        grads = optax.tree.scale(1 / scale, grads)
        finite = jnp.isfinite(optax.tree.norm(grads))
        own = params if seen == "master" else half
        updates, new = tx.update(grads, state, own)
        after = optax.apply_updates(params, updates), new
        return *optax.tree.where(finite, after, (params, state)), finite

    state, lost = tx.init(params), 0
    for i in range(6):
        scale = jnp.float32(jnp.inf if i == 3 else 64)
        before = params, state
        params, state, finite = step(params, state, scale)
        assert finite == (i != 3)
        if i == 3:
            jax.tree.map(assert_same_bits, (params, state), before)
        masks = jprune.get_masks(state)
        if seen == "master":
            assert_zero(params, masks)
            assert_zero(optax.tree.cast(params, dtype), masks)
        lost += int(jnp.sum(jnp.where(masks["a"], 0, params["a"]) != 0))
    assert (lost > 0) == (seen == "half")


def test_outside_of_lookahead() -> None:
    params = optax.LookaheadParams.init_synced(make_params())
    fast = optax.sgd(0.1, momentum=0.9)
    ahead = optax.lookahead(fast, 3, 0.5, reset_state=True)
    tx = optax.chain(ahead, make_pruner("prune", params))
    for after, state in train(tx, params, of=lambda p: p.fast):
        masks = jprune.get_masks(state)
        assert_zero(after.fast, masks.fast)
        assert_zero(after.slow, masks.slow)


def test_slow_copy_of_lookahead() -> None:
    params = optax.LookaheadParams.init_synced(make_params())
    ahead = optax.lookahead(optax.sgd(0.1), 3, 0.5)
    tx = optax.chain(ahead, jprune.prune(0.5, where="^fast/[ab]$"))
    for after, state in train(tx, params, of=lambda p: p.fast):
        masks = jprune.get_masks(state).fast
        assert_zero(after.fast, masks)
    assert np.asarray(after.slow["a"])[~np.asarray(masks["a"])].any()
    assert_zero(jprune.apply_masks(after.slow, masks), masks)


@pytest.mark.parametrize("pruner", ["keep_masks", "prune"])
def test_lookahead_that_resets_is_refused_outside(pruner: str) -> None:
    params = make_params()
    inner = optax.chain(optax.sgd(0.1), make_pruner(pruner, params))
    tx = optax.lookahead(inner, 3, 0.5, reset_state=True)
    both = optax.LookaheadParams.init_synced(params)
    grads = jax.tree.map(jnp.ones_like, params)
    _, state = tx.update(grads, tx.init(both), both)
    for call in (
        lambda: tx.update(grads, state, both),
        lambda: jax.jit(tx.update)(grads, state, both),
        lambda: jprune.get_masks(state),
    ):
        with pytest.raises(ValueError, match=r"'a' in the state.*got int32"):
            call()


def test_sam_around_a_pruner_is_refused() -> None:
    params = make_params()
    inner = optax.chain(optax.sgd(0.1), jprune.prune(0.5))
    tx = optax.contrib.sam(inner, optax.sgd(0.1))
    grads = jax.tree.map(jnp.ones_like, params)
    _, state = tx.update(grads, tx.init(params), params)
    with pytest.raises(ValueError, match=r"sam.*chain\(optax"):
        tx.update(grads, state, params)
