"""What equations hold, read alike on every version of JAX."""

import itertools
import pathlib
import re
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax

import jprune
from jprune.jaxprs import versions as _jax

X = jnp.ones((2, 3))


def find(name: str, fn: Any, *args: Any) -> Any:
    """The one equation of this name."""
    program, _ = _jax.opened(jax.make_jaxpr(fn)(*args))
    (eqn,) = (e for e in program.eqns if e.primitive.name == name)
    return eqn


@pytest.mark.parametrize(
    ("fixed", "carry", "stacks", "made"),
    [*itertools.product((0, 2), (1, 2), (0, 2), (0, 1)), (1, 0, 1, 3)],
)
def test_scan(fixed: int, carry: int, stacks: int, made: int) -> None:
    constants = [X + i for i in range(fixed)]

    def loop(constants: Any, start: Any, xs: Any) -> Any:
        def body(held: Any, entry: Any) -> Any:
            total = sum((*constants, *entry, *held), jnp.zeros((2, 3)))
            return [h + total for h in held], [total * i for i in range(made)]

        return lax.scan(body, start, xs, length=4, reverse=True)

    start, xs = [X] * carry, [jnp.ones((4, 2, 3))] * stacks
    eqn = find("scan", loop, constants, start, xs)
    found = _jax.read_scan(eqn)
    assert (found.length, found.reverse, found.unroll) == (4, True, 1)
    assert list(map(len, found.inputs(eqn.invars))) == [fixed, carry, stacks]
    assert list(map(len, found.outputs(eqn.outvars))) == [carry, made]
    _, _, through = found.inputs(eqn.invars)
    assert all(v.aval.shape == (4, 2, 3) for v in through)


def test_scan_over_scalars_keys_and_nothing() -> None:
    def loop(key: Any, x: Any, keys: Any) -> Any:
        def body(held: Any, entry: Any) -> Any:
            key, x = held
            i, other, empty = entry
            return (key, x * i), (other, x, empty * x)

        xs = (jnp.arange(0.0), keys, jnp.ones((0, 0)))
        return lax.scan(body, (key, x), xs)

    keys = jax.random.split(jax.random.key(0), 0)
    eqn = find("scan", loop, jax.random.key(0), 1.0, keys)
    found = _jax.read_scan(eqn)
    assert found.length == 0
    shapes = [[v.aval.shape for v in vs] for vs in found.outputs(eqn.outvars)]
    assert sorted(shapes[0])[-1] == ()
    assert all(shape[0] == 0 for shape in shapes[1])


@pytest.mark.parametrize(("of_test", "of_body"), [(0, 0), (1, 0), (0, 2)])
def test_while(of_test: int, of_body: int) -> None:
    limits, steps = [jnp.ones(())] * of_test, [X] * of_body

    def loop(limits: Any, steps: Any, start: Any) -> Any:
        return lax.while_loop(
            lambda c: jnp.sum(c) < sum(limits, jnp.zeros(())),
            lambda c: sum(steps, c + 1),
            start,
        )

    eqn = find("while", loop, limits, steps, X)
    found = _jax.read_while(eqn)
    inputs = found.inputs(eqn.invars)
    assert list(map(len, inputs)) == [of_test, of_body, 1]
    assert len(_jax.opened(found.test)[0].outvars) == 1
    assert len(_jax.opened(found.body)[0].outvars) == 1


def test_cond() -> None:
    eqn = find("cond", lambda i, x: lax.switch(i, [jnp.sin] * 3, x), 1, X)
    programs = _jax.read_cond(eqn)
    assert len(programs) == 3
    for program in programs:
        inside, _ = _jax.opened(program)
        assert [e.primitive.name for e in inside.eqns] == ["sin"]


@jax.custom_vjp
def doubled(x: Any) -> Any:
    return jnp.sin(x)


doubled.defvjp(lambda x: (x, None), lambda _, g: (g,))


@jax.custom_jvp
def tripled(x: Any) -> Any:
    return jnp.sin(x)


tripled.defjvp(lambda x, t: (x[0], t[0]))

CALLED: dict[str, Any] = {
    "INLINED": jax.jit(jnp.sin),
    "REMAT": jax.checkpoint(jnp.sin),
    "CUSTOM_JVP": tripled,
    "CUSTOM_VJP": doubled,
}


@pytest.mark.parametrize("kind", CALLED)
def test_calls(kind: str) -> None:
    """Each kind has a name that we know, and one program."""
    program, _ = _jax.opened(jax.make_jaxpr(CALLED[kind])(X))
    (eqn,) = program.eqns
    name = eqn.primitive.name
    assert name in getattr(_jax, kind)
    assert name in _jax.CALLS
    inside, _ = _jax.opened(_jax.held(eqn))
    assert [e.primitive.name for e in inside.eqns] == ["sin"]
    (y,) = _jax.evaluate(eqn, [X])
    np.testing.assert_array_equal(y, jnp.sin(X))


def test_custom_rules_survive_evaluation() -> None:
    for fn, slope in ((tripled, 1.0), (doubled, 1.0)):
        eqn = jax.make_jaxpr(fn)(X).eqns[0]
        grad = jax.grad(lambda x, eqn=eqn: _jax.evaluate(eqn, [x])[0].sum())(X)
        np.testing.assert_array_equal(grad, jnp.full_like(X, slope))


def test_constants_of_a_program() -> None:
    table = np.arange(3.0, dtype=np.float32)
    program, constants = _jax.opened(jax.make_jaxpr(lambda x: x * table)(X))
    assert len(constants) == len(program.constvars) == 1
    np.testing.assert_array_equal(constants[0], table)


def test_bind_replaces_parameters() -> None:
    eqn = find("reduce_sum", lambda x: x.sum(0), X)
    np.testing.assert_array_equal(_jax.bind(eqn, [X]), [2, 2, 2])
    np.testing.assert_array_equal(_jax.bind(eqn, [X], axes=(1,)), [3, 3])


@pytest.mark.parametrize("x64", [False, True])
def test_types_are_those_of_a_program(x64: bool) -> None:
    """And asking for them doesn't warn (warnings are errors here)."""
    with jax.enable_x64(x64):
        found = _jax.abstract_array(np.ones((2, 3)))
        assert found.dtype == jnp.result_type(float)
        assert jax.eval_shape(jnp.sin, found).shape == (2, 3)
        assert _jax.abstract_array(1.0).dtype == found.dtype
        assert _jax.abstract_array(jnp.asarray(1.0)).weak_type
        assert (
            _jax.abstract_array(jnp.ones(2, jnp.bfloat16)).dtype == jnp.bfloat16
        )
        key = jax.random.key(0)
        assert _jax.abstract_array(key).dtype == key.dtype


@pytest.mark.parametrize("arguments", ["arrays", "shapes"])
def test_numpy_arrays_of_float64_do_not_warn(arguments: str) -> None:
    def fn(params: Any, x: Any) -> Any:
        return jax.nn.relu(x @ params["w"]) @ params["v"]

    params = {"w": np.ones((4, 8)), "v": np.ones((8, 3))}
    x: Any = np.ones((2, 4))
    if arguments == "shapes":
        x = jax.ShapeDtypeStruct(x.shape, x.dtype)
    graph = jprune.trace_units(fn, params, x)
    assert [pool.units.shape for pool in graph.pools] == [(1, 8)]


def test_versions_are_known_in_one_place() -> None:
    """Nothing else looks into what only some versions have."""
    root = pathlib.Path(jprune.__file__).parent
    for file in root.rglob("*.py"):
        if file.name != "versions.py":
            found = re.findall(
                r"jax\.extend|num_consts|num_carry|nconsts|\w+_jaxpr\b(?=\W*\])"
                r'|"branches"|ft_in|eval_jaxpr|\.primitive\.bind|\.consts\b',
                file.read_text(),
            )
            assert not found, f"{file}: {found}"
