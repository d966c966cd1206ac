"""What XLA must be told: each of these fails once nothing is gained by it."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jprune._core.xla import apart, made_once, not_hoisted

pytestmark = pytest.mark.optimized


def compiled(fn: Any, *shapes: Any) -> Any:
    return jax.jit(fn).lower(*shapes).compile()


def as_it_is(x: Any) -> Any:
    return x


def test_not_hoisted_keeps_no_copy_in_another_precision() -> None:
    n = 2**20
    scores = jax.ShapeDtypeStruct((n,), jnp.bfloat16)
    limits = jax.ShapeDtypeStruct((9,), np.float32)

    def memory(hold: Any) -> int:
        def fn(x: Any, limits: Any) -> Any:
            def count(i: Any, total: Any) -> Any:
                here, limit = hold((x, limits[i]))
                return total + jnp.sum(here.astype(np.float32) <= limit)

            return jax.lax.fori_loop(0, 9, count, 0)

        found = compiled(fn, scores, limits).memory_analysis()
        return int(found.temp_size_in_bytes)

    assert memory(as_it_is) - memory(not_hoisted) >= 4 * n


def test_made_once_is_not_made_again_for_every_leaf() -> None:
    leaves = [jax.ShapeDtypeStruct((64,), np.float32)] * 24

    def operations(hold: Any) -> int:
        def fn(xs: list[Any]) -> list[Any]:
            counts = hold(jnp.concatenate([jnp.sum(x)[None] for x in xs]))
            sums = jnp.cumsum(counts)
            return [x * (sums[i] + counts.sum()) for i, x in enumerate(xs)]

        return int(compiled(fn, leaves).as_text().count(" = "))

    assert 2 * operations(made_once) < operations(as_it_is)


def test_apart_are_two_sums() -> None:
    x = jax.ShapeDtypeStruct((1000, 1000), np.float32)

    def sums(hold: Any) -> int:
        text = compiled(lambda x: hold(jnp.sum(x, -1)).sum(), x).as_text()
        return int(text.count(" reduce("))

    assert sums(apart) == 2
    assert sums(as_it_is) == 1
