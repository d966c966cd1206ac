"""Members and transforms print as the call that made them, and pickle."""

import copy
import gc
import inspect
import pickle
import subprocess
import sys
import weakref
from pathlib import Path
from typing import Any

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import jprune
from jprune import allocations, criteria, projections, structures, transforms
from jprune._core.calls import recorded


def squares(params: Any) -> Any:
    return jax.tree.map(jnp.square, params)


def forget(grads: Any, state: Any, params: Any) -> Any:
    del grads, state, params
    return ()


def ramp(count: Any) -> Any:
    return optax.polynomial_schedule(0.0, 0.9, 3, 4, 0)(count)


def net(params: Any, x: Any) -> Any:
    return jax.nn.relu(x @ params["w"]) @ params["v"]


PARAMS = {
    "w": jnp.arange(-16.0, 16).reshape(4, 8),
    "v": jnp.arange(24.0).reshape(8, 3),
}
MASKS = {"w": np.arange(8) > 3, "v": None}
GRAPH = jprune.trace_units(net, PARAMS, jnp.ones((1, 4)))
# As they print; a call is what makes them again.
MEMBERS = [
    "magnitude()",
    "random()",
    "gradient()",
    "taylor()",
    "taylor('signed')",
    "taylor(form='squared')",
    "movement()",
    "fisher()",
    "custom(squares)",
    "custom(squares, grads=False)",
    "unstructured()",
    "fan_in(in_axis=-1, out_axis=-2)",
    "group(2)",
    "block((2, 2), pooling='mean')",
    "n_m(2, 4)",
    "channel()",
    "channel((0, 1), batch_axis=(2,))",
    "uniform()",
    "erdos_renyi(power=0.5, target=0.9)",
    "given({'a': 0.5})",
    "global_ranking('lamp', min_density=0.1)",
]
PROJECTIONS = [
    "frobenius_ball(2.0)",
    "spectral_ball(1.5, out_axis=0)",
    "nuclear(0.1)",
    "l0_ball(5)",
    "soft_threshold(0.1)",
    "group_soft_threshold(threshold=0.1)",
]
TRANSFORMS = [
    "prune(0.5)",
    "prune(ramp, every=2, where='w')",
    "prune(0.5, criterion=custom(squares), structure=n_m(2, 4))",
    "project(soft_threshold(0.1), every=2)",
    "project_frobenius_ball(2.0, per='leaf')",
    "with_gradients(prune(0.5, criterion=taylor()))",
    "rewire(prune(0.1), 0.5, grow=gradient(), stop=9)",
    "rigl(project_frobenius_ball(2.0), 0.5, stop=9)",
    "sparse_evolution(prune(0.1), 0.5, fraction=0.3)",
]


def make(call: str) -> Any:
    rooms = (criteria, structures, allocations, projections, transforms)
    names = {n: getattr(room, n) for room in rooms for n in room.__all__}
    return eval(call, names | {"squares": squares, "ramp": ramp})


def name_of(thing: Any) -> str:
    """How it prints; optax's NamedTuples, by their first part."""
    is_transform = isinstance(thing, optax.GradientTransformation)
    return (
        repr(thing.init).removesuffix(".init") if is_transform else f"{thing}"
    )


def test_every_factory_is_here() -> None:
    here = {c.partition("(")[0] for c in (*MEMBERS, *PROJECTIONS, *TRANSFORMS)}
    here |= {"snip", "keep_masks"}  # below
    here |= {"fitted"}  # in the tests of fits
    here |= {"activation", "curvature", "gauss_newton"}  # criteria of inputs
    for room in (criteria, structures, allocations, projections, transforms):
        names = {n for n in room.__all__ if n.islower()}
        assert names - {"check_chain"} <= here, room


@pytest.mark.parametrize("call", [*MEMBERS, *PROJECTIONS, *TRANSFORMS])
def test_what_a_factory_makes_prints_as_its_call_and_pickles(call: str) -> None:
    made = make(call)
    assert name_of(made) == call
    again = pickle.loads(pickle.dumps(made))
    assert type(again) is type(made)
    assert name_of(again) == call
    assert copy.deepcopy(made) == copy.copy(made) == made  # as functions are


@pytest.mark.parametrize("call", ["prune(0.5)", "l0_ball(5)", "movement()"])
def test_what_was_pickled_computes_the_same(call: str) -> None:
    made = make(call)
    for thing in (pickle.loads(pickle.dumps(made)), copy.deepcopy(made)):
        chex.assert_trees_all_equal(results(thing), results(made))


def results(thing: Any) -> Any:
    if callable(thing):
        return thing(PARAMS)
    if isinstance(thing, criteria.Criterion):
        state = thing.update(PARAMS, thing.init(PARAMS), PARAMS)
        return thing.score(PARAMS, state, None, None)
    return thing.update(PARAMS, thing.init(PARAMS), PARAMS)


@pytest.mark.slow
def test_another_process_reads_them(tmp_path: Path) -> None:
    tx = jprune.prune(
        0.5,
        criterion=criteria.snip(
            lambda w, x: jnp.sum((x @ w) ** 2), PARAMS["w"], jnp.ones((2, 4))
        ),
        structure=structures.channel(),
        key=jax.random.key(3),
    )
    both = tx, jprune.keep_masks(MASKS)
    (tmp_path / "tx").write_bytes(pickle.dumps((both, PARAMS, MASKS)))
    code = """
import pickle, sys, jprune, jax
(tx, keep), params, masks = pickle.load(open(sys.argv[1], "rb"))
print(tx.init, keep.init)
w = params["w"]
chosen = tx.update(w, tx.init(w), w)[1].masks
kept = keep.init(params).masks["w"]
print(jax.tree.map(lambda m: m[0].tolist(), [chosen, kept]))
"""
    command = [sys.executable, "-W", "error", "-c", code, str(tmp_path / "tx")]
    said = subprocess.check_output(command, text=True).splitlines()
    masks = [
        tx.update(PARAMS["w"], tx.init(PARAMS["w"]), PARAMS["w"])[1].masks,
        jprune.keep_masks(MASKS).init(PARAMS).masks["w"],
    ]
    assert said == [
        f"{tx.init} {both[1].init}",
        f"{[m[0].tolist() for m in masks]}",
    ]


def test_units_print_and_pickle() -> None:
    structure = jprune.units(GRAPH, by="parameters")
    again = pickle.loads(pickle.dumps(structure))
    assert f"{again}" == f"{structure}" == "units(Graph(...), by='parameters')"
    found, wanted = (
        jprune.find_masks(PARAMS, 0.5, structure=s) for s in (again, structure)
    )
    chex.assert_trees_all_equal(found, wanted)


def test_one_call_makes_all_parts_again() -> None:
    calls.clear()
    member = counted(3)
    pickle.loads(pickle.dumps([member, member.update]))
    assert calls == [3, 3]


calls: list[int] = []


@recorded
def counted(number: int) -> criteria.Criterion:
    calls.append(number)
    return criteria.Criterion(
        init=lambda params: (),
        update=lambda grads, state, params: (),
        score=lambda params, state, grads, key: params,
    )


def test_what_was_replaced_is_said_and_kept() -> None:
    member = criteria.fisher()._replace(
        signed=True, score=criteria.gradient().score, update=forget
    )
    assert f"{member}" == (
        "fisher()._replace(update=forget, score=gradient().score, signed=True)"
    )
    again = pickle.loads(pickle.dumps(member))
    assert f"{again}" == f"{member}"
    assert again.update is forget
    own = criteria.Criterion(squares, forget, squares)
    assert f"{own}".startswith("Criterion(init=squares, update=forget")


def test_arrays_print_in_short() -> None:
    masks = {f"layer{i}": np.ones((999, 9), bool) for i in range(99)}
    assert repr(jprune.keep_masks(masks).update) == (
        "keep_masks({'layer0': bool[999, 9], 'layer1': bool[999, 9], "
        "'layer10': bool[999, 9], 'layer11': bool[999, 9], ...}).update"
    )
    seen = []
    jax.jit(lambda r: seen.append(repr(projections.frobenius_ball(r))))(2.0)
    assert seen == ["frobenius_ball(float32[])"]
    assert repr(projections.l0_ball(np.int32(3))) == "l0_ball(3)"


def test_a_function_without_a_name_is_refused_by_pickle() -> None:
    with pytest.raises((pickle.PicklingError, AttributeError), match="lambda"):
        pickle.dumps(criteria.custom(lambda params: params))
    with pytest.raises(
        (pickle.PicklingError, AttributeError), match=r"chain.*init_fn"
    ):
        pickle.dumps(jprune.rigl(optax.adam(0.1), 0.5, stop=9))


def test_help_shows_calls() -> None:
    for name in ("prune", "rewire", "rigl", "find_masks"):
        shown = str(inspect.signature(getattr(jprune, name)))
        assert (
            "structure: jprune.structures.Structure = unstructured()" in shown
        )
    assert "criterion: jprune.criteria.Criterion = magnitude()" in str(
        inspect.signature(jprune.prune)
    )


# Not `jprune.models`: Linen writes the signatures there.
ROOMS = [
    room
    for room in (getattr(jprune, name) for name in jprune.__all__)
    if inspect.ismodule(room)
]


@pytest.mark.parametrize("room", [jprune, *ROOMS], ids=lambda m: m.__name__)
def test_no_signature_shows_an_address(room: Any) -> None:
    """As a lambda does; nor do those of methods."""
    public = [getattr(room, n) for n in getattr(room, "__all__", ())]
    classes = [x for x in public if inspect.isclass(x)]
    methods = [y for x in classes for y in vars(x).values()]
    shown = [
        x
        for x in filter(inspect.isroutine, [*public, *methods])
        if hasattr(x, "__name__") and not isinstance(x, classmethod)
    ]
    for thing in (*shown, *classes):
        assert " at 0x" not in str(inspect.signature(thing)), thing


def test_nothing_lives_longer_than_its_transform() -> None:
    """No cycle keeps large masks until a collection."""
    gc.disable()
    try:
        tx = jprune.keep_masks(MASKS)
        seen = weakref.ref(tx.update)
        del tx
        assert seen() is None
    finally:
        gc.enable()
