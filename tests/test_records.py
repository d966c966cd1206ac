"""What is known of each primitive, against what the primitive does.

Units, constants and the smaller program all come from what jprune knows of a
primitive, so that one mistake could agree with itself. Here they are held
against JAX: a table of programs of one primitive each, in float64, and for each
of them which axes can be cut, the cut program against the whole one, and the
constants against what the program computes.
"""

import contextlib
import functools
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn
from jax import lax
from jax.ad_checkpoint import checkpoint_name

from jprune.compaction.graph.constants import Known, Stored, nothing
from jprune.compaction.graph.ids import Ids
from jprune.compaction.graph.walk import RULES, Value, Walk
from jprune.compaction.removal.rewrite import RULES as SMALLER
from jprune.compaction.removal.rewrite import Rewrite, Small
from jprune.jaxprs.records import RECORDS
from jprune.jaxprs.versions import CALLS

pytestmark = pytest.mark.usefixtures("x64")

Array = Any  # of NumPy
SIZES = {"a": 3, "b": 4, "c": 5, "d": 6, "e": 7, "h": 12}


class Row(NamedTuple):
    """A program that is little more than one primitive."""

    name: str  # the primitive's
    fn: Callable[..., Any]
    # A word for each operand, a sign for each of its axes; "-" is a scalar. A
    # letter: the positions are units, the same ones for the same letter, and
    # shared with no other letter but a capital one. A digit: an axis of that
    # size, of which nothing is asked.
    axes: str
    kinds: str = ""  # a letter for each operand, see `draw`; floats if empty

    @property
    def operands(self) -> list[str]:
        """The signs of the axes of each operand."""
        return [word.replace("-", "") for word in self.axes.split()]

    @property
    def shapes(self) -> list[tuple[int, ...]]:
        """The shape of each operand."""
        return [
            tuple(SIZES.get(x.lower()) or int(x) for x in signs)
            for signs in self.operands
        ]

    @property
    def types(self) -> str:
        """The kind of each operand."""
        return self.kinds or "f" * len(self.operands)


def draw(rng: np.random.Generator, kind: str, shape: Sequence[int]) -> Array:
    """Random entries, none of them 0 but for booleans and indices."""
    signs = rng.choice([-1, 1], shape)
    positive = rng.uniform(0.1, 0.9, shape)
    return {
        "f": lambda: signs * (rng.random(shape) + 0.1),
        "p": lambda: positive,
        "g": lambda: positive + 1,
        "c": lambda: positive + 1j * signs,
        "i": lambda: signs * rng.integers(1, 6, shape),
        "u": lambda: rng.integers(1, 9, shape).astype(np.uint32),
        "b": lambda: signs > 0,
        "n": lambda: rng.integers(0, 3, shape),  # indices
        "o": lambda: rng.integers(0, 9, shape),  # also out of bounds
    }[kind]()


def rows(name: str, *several: Sequence[Any]) -> Iterator[Row]:
    """Rows of one primitive."""
    for row in several:
        yield Row(name, *row)


def elementwise() -> Iterator[Row]:
    """One position at a time."""
    by_kinds = {
        "f": "abs asin asinh atan atanh bessel_i0e bessel_i1e cbrt ceil cos "
        "cosh erf erf_inv erfc exp exp2 expm1 floor is_finite lgamma logistic "
        "neg round sign sin sinh square stop_gradient tan tanh",
        "p": "acos digamma log log1p rsqrt sqrt",
        "g": "acosh",
        "c": "conj imag real",
        "u": "clz population_count",
        "i": "sign",
        "ff": "add atan2 div eq ge gt le lt max min mul ne nextafter rem sub",
        "pf": "pow",
        "pp": "complex igamma igammac",
        "gp": "zeta",
        "ii": "add max mul",
        "cc": "add mul",
        "uu": "shift_left shift_right_arithmetic shift_right_logical",
    }
    for kinds, some in by_kinds.items():
        for name in some.split():
            yield Row(
                name, getattr(lax, name), " ".join(["ab"] * len(kinds)), kinds
            )
    for kind in "bui":
        for name in ("and", "or", "xor"):
            yield Row(name, getattr(lax, f"bitwise_{name}"), "ab ab", kind * 2)
        yield Row("not", lax.bitwise_not, "ab", kind)
    yield from rows(
        "mul",
        (lambda x: x * 2, "ab"),
        (lambda x: x * x.T, "aa"),
        (lax.mul, "- -"),
        (lax.mul, "ab -"),
        (lax.mul, "ab 1b"),
        (lax.mul, "a1 1b"),
    )
    yield from rows(
        "add",
        (lax.add, "a1 ab"),
        (lambda x, y: x + y.T, "ab ba"),
        (lambda x, y: 1 - (x + 2 * y), "ab ab"),
    )
    yield from rows("div", (lax.div, "ab 1b"), (lax.div, "1b ab"))
    yield from rows(
        "max", (lax.max, "ab 1b"), (lambda x: lax.max(x, 0.0), "ab")
    )
    yield from rows(
        "add_any", (jax.grad(lambda x: (x * jnp.sin(x)).sum()), "ab")
    )
    yield from rows(
        "integer_pow", (lambda x: x**3, "ab"), (lambda x: x**-2, "ab")
    )
    yield from rows(
        "polygamma", (lambda x: lax.polygamma(x * 0 + 2, x), "ab", "p")
    )
    yield from rows(
        "regularized_incomplete_beta", (lax.betainc, "ab ab ab", "ppp")
    )
    yield from rows(
        "reduce_precision", (lambda x: lax.reduce_precision(x, 5, 4), "ab")
    )
    yield from rows("bitcast_convert_type", (lambda x: x.view(jnp.int64), "ab"))
    yield from rows(
        "convert_element_type",
        (lambda x: x.astype(jnp.float32), "ab"),
        (lambda x: x.astype(int), "ab"),
        (lambda x: x.astype(float), "ab", "b"),
    )
    yield from rows(
        "clamp",
        (lax.clamp, "ab ab ab"),
        (lax.clamp, "- ab -"),
        (lambda x: lax.clamp(-0.5, x, 0.5), "ab"),
    )
    yield from rows(
        "select_n",
        (lax.select_n, "ab ab ab", "bff"),
        (lax.select_n, "- ab ab", "bff"),
        (lax.select_n, "ab ab ab ab", "nfff"),
        (lambda p, x: jnp.where(p, x, 0), "ab ab", "bf"),
    )
    yield from rows("copy", (jnp.copy, "ab"))
    yield from rows("name", (lambda x: checkpoint_name(x, "x"), "ab"))
    yield from rows("device_put", (jax.device_put, "ab"))
    yield from rows(
        "optimization_barrier",
        (lambda *xs: lax.optimization_barrier(xs), "ab cd"),
    )
    yield from rows("sharding_constraint", (constrained, "ab"))


def constrained(x: Array) -> Array:
    """With a placement."""
    sharding = jax.sharding.SingleDeviceSharding(jax.devices()[0])
    return lax.with_sharding_constraint(x, sharding)


def without_operands() -> Iterator[Row]:
    """What is made of nothing, or drawn: dense, and cut where it is used."""
    key, random = jax.random.key, jax.random
    yield from rows(
        "iota",
        (lambda x: x * lax.broadcasted_iota(float, (3, 4), 1), "ab"),
        (lambda x: jnp.arange(3) + x, "-"),
    )
    yield from rows(
        "empty", (lambda x: lax.empty((3, 4), x.dtype) * 0 * x, "ab")
    )
    yield from rows(
        "random_bits",
        (lambda x: random.bits(key(0), (3, 4)) + x, "ab", "u"),
        (lambda x, s: random.uniform(key(s), (3, 4)) * x, "ab -", "fi"),
    )
    for name, fn in (
        ("random_seed", lambda s: key(s)),
        ("random_unwrap", lambda s: key(s)),
        ("random_clone", lambda s: random.clone(key(s))),
        ("random_fold_in", lambda s: random.fold_in(key(0), s)),
        ("random_split", lambda s: random.split(key(s), 3)),
    ):
        yield Row(name, lambda s, fn=fn: random.key_data(fn(s)), "-", "i")
    yield from rows("random_wrap", (lambda s: random.bits(s, (3,)), "2", "u"))
    yield from rows(
        "rng_bit_generator",
        (lambda k: lax.rng_bit_generator(k, (3, 4)), "4", "u"),
    )


def sums() -> Iterator[Row]:
    """Over an axis, in full or so far."""
    of = {
        axes: lambda x, axes=axes: x.sum(axes)
        for axes in (0, 1, (0, 2), (0, 1, 2))
    }
    for kind in "fic":
        yield from rows(
            "reduce_sum", *((fn, "abc", kind) for fn in of.values())
        )
    yield from rows(
        "reduce_sum",
        (lambda x: x.sum(1), "a1c"),
        (lambda x: x.sum(1), "a0c"),
        (lambda x: x.mean(-1, keepdims=True), "ab"),
        (lambda x: x.sum(1) + x.sum(0), "aa"),
    )
    reductions = {
        "max": "fi",
        "min": "f",
        "prod": "f",
        "and": "bu",
        "or": "bu",
        "xor": "bu",
    }
    for name, kinds in reductions.items():
        fn = getattr(lax, f"reduce_{name}")
        for kind in kinds:
            yield from rows(
                f"reduce_{name}",
                (lambda x, fn=fn: fn(x, (1,)), "a5c", kind),
                (lambda x, fn=fn: fn(x, (0, 2)), "3b5", kind),
                (lambda x, fn=fn: fn(x, (1,)), "a1c", kind),
            )
    yield from rows("argmax", (lambda x: lax.argmax(x, 1, np.int32), "a5c"))
    yield from rows("argmin", (lambda x: lax.argmin(x, 0, np.int32), "5c"))
    for name in ("cumsum", "cumprod", "cummax", "cummin", "cumlogsumexp"):
        fn = getattr(lax, name)
        yield from rows(
            name,
            (lambda x, fn=fn: fn(x, 1), "a5c"),
            (lambda x, fn=fn: fn(x, 0, reverse=True), "4b"),
        )


def products() -> Iterator[Row]:
    """Contracted, batch and free axes; features in groups."""
    for letters in (
        *("ab,bc->ac", "ab,cb->ac", "ba,bc->ac", "abc,bcd->ad", "abc,dac->abd"),
        *("ab,cd->abcd", "ab,ab->", "ab,ab->a", "abcd,aecd->abe", "b,bc->c"),
        *("b,b->", "ab,b->a", "a,b->ab", "ab,ac->abc"),
    ):
        axes = letters.partition("->")[0].replace(",", " ")
        yield Row("dot_general", functools.partial(jnp.einsum, letters), axes)
    yield from rows(
        "dot_general",
        (jnp.matmul, "a1 1b"),
        (jnp.matmul, "1b bc"),
        (jnp.matmul, "ab bc", "ii"),
        (jnp.matmul, "ab bc", "cf"),
        (lambda x: x @ x.T, "ab"),
        (lambda x: x @ x, "aa"),
        (around, "ab bc"),
    )
    line, image = "NWC WIO NWC", "NHWC HWIO NHWC"
    yield from rows(
        "conv_general_dilated",
        (conv(line), "a6b 3bc"),
        (conv(line, padding="VALID"), "a6b 3bc"),
        (conv(line, padding="VALID"), "a6b 1bc"),
        (conv(line, padding=[(2, 0)]), "a6b 3bc"),
        (conv("NCH OIH NCH"), "ab6 cb3"),
        (conv("CNH OIH CHN"), "ba6 cb3"),
        (conv(image, window_strides=[2, 1]), "a56b 23bc"),
        (conv(image, rhs_dilation=[2, 1]), "a56b 23bc"),
        (conv(image, lhs_dilation=[2, 1]), "a33b 22bc"),
        (conv(line, feature_group_count=6), "a5d 31d"),
        (conv(line, feature_group_count=6), "a5D 31H"),
        (conv(line, feature_group_count=2), "b5D 33B"),
        (conv(line, feature_group_count=2), "b5D 338"),
        (conv(line, batch_group_count=2), "454 346"),
    )


def conv(numbers: str, **more: Any) -> Any:
    """A convolution with these axes."""
    dimensions: Any = tuple(numbers.split())
    params: dict[str, Any] = {"window_strides": [1] * (len(dimensions[0]) - 2)}
    params |= {"padding": [(1, 1)] * (len(dimensions[0]) - 2)} | more
    return lambda x, w: lax.conv_general_dilated(
        x, w, dimension_numbers=dimensions, **params
    )


def positions() -> Iterator[Row]:
    """What moves them, merges or splits axes, repeats or leaves out."""
    yield from rows(
        "reshape",
        (lambda x: x.reshape(3, 20), "abc"),
        (lambda x: x.reshape(-1), "abc"),
        (lambda x: x.reshape(3, 2, 3), "ad"),
        (lambda x: x.reshape(2, 3, 2, 2), "db"),
        (lambda x: x.reshape(1, 3, 1, 4), "ab"),
        (lambda x: x.reshape(3, 4), "a1b"),
        (lambda x: x.reshape(12, 1), "1ab"),
        (lambda x: x.reshape(3, 2, 2, 5).reshape(6, 10), "abc"),
        (lambda x: x.reshape(3, 12).reshape(3, 6, 2).reshape(36), "ad2"),
        (lambda x: x.reshape(8, 3), "64"),
        (lambda x: x.reshape(1), "-"),
        (lambda x: x.reshape(()), "1"),
        (lambda x: x.reshape(0, 2), "30"),
        (lambda x, y: x.reshape(12) * y.T.reshape(12), "ab 43"),
        (lambda x, y: x.reshape(12) @ y, "ab Hc"),
        (lambda x, y: (x @ y).reshape(3, 2, 3), "ab bd"),
    )
    yield from rows(
        "squeeze",
        (lambda x: x.squeeze(1), "a1b"),
        (lambda x: x.squeeze((0, 3)), "1ab1"),
    )
    yield from rows(
        "transpose",
        (lambda x: x.transpose(2, 0, 1), "abc"),
        (lambda x: x + x.T, "aa"),
    )
    yield from rows(
        "rev",
        (lambda x: lax.rev(x, (1,)), "abc"),
        (lambda x: lax.rev(x, (0, 2)), "abc"),
        (lambda x: x + x[::-1], "4b"),
    )
    into = lax.broadcast_in_dim
    yield from rows(
        "broadcast_in_dim",
        (lambda x: into(x, (2, 3, 4), (1, 2)), "ab"),
        (lambda x: into(x, (3, 4, 2), (0, 1)), "ab"),
        (lambda x: into(x, (3, 5), (0, 1)), "a1"),
        (lambda x: into(x, (3, 4, 5), (1,)), "b"),
        (lambda x: into(x, (2, 3), ()), "-"),
        (lambda x, y: x[:, None] * y, "a b"),
        (lambda x, y: (x[:, None] + y) @ y, "a b"),
    )
    yield from rows(
        "concatenate",
        *(
            (lambda *xs: lax.concatenate(xs, 0), words)
            for words in ("ab cb", "ab 3b", "ab 1b cb", "ab 0b")
        ),
        (lambda x, y: lax.concatenate([x, y, x], 1), "ab ac"),
        (lambda x, w: lax.concatenate([x, x], 1) @ w, "ab 8c"),
    )
    yield from rows(
        "stack",
        (lambda *xs: jnp.stack(xs), "ab ab"),
        (lambda *xs: jnp.stack(xs, -1), "ab ab ab"),
    )
    yield from rows(
        "unstack",
        (jnp.unstack, "2bc"),
        (lambda x: jnp.unstack(x, axis=1), "a3c"),
    )
    at = np.s_
    yield from rows(
        "slice",
        *(
            (lambda x, index=index: x[index], "DE")
            for index in (
                at[1:3],
                at[:, 1:],
                at[::2, ::3],
                at[1::2, :1],
                at[2:2],
            )
        ),
        (lambda x: x[:, :3] * x[:, 3:], "c6"),
    )
    yield from rows(
        "split",
        *(
            (lambda x, sizes=sizes: lax.split(x, sizes, 1), "ad")
            for sizes in ((2, 4), (1, 3, 2), (6,), (3, 0, 3))
        ),
        (lambda x: jnp.multiply(*lax.split(x, (3, 3), 1)), "a6"),
    )
    yield from rows(
        "tile",
        (lambda x: lax.tile(x, (2, 1)), "ab"),
        (lambda x: lax.tile(x, (1, 3)), "ab"),
        (lambda x: lax.tile(x, (2, 3)), "a1"),
    )
    yield from rows(
        "pad",
        (lambda x, v: lax.pad(x, v, [(1, 0, 0), (0, 2, 0)]), "ab -"),
        (lambda x: lax.pad(x, 0.0, [(1, 0, 0), (0, 2, 0)]), "ab"),
        (lambda x: lax.pad(x, 2.0, [(0, 0, 0), (1, 1, 0)]), "ab"),
        (lambda x: lax.pad(x, 2.0, [(0, 0, 0), (0, 0, 0)]), "ab"),
        (lambda x: lax.pad(x, 2.0, [(-1, 0, 0), (0, 2, 0)]), "34"),
        (lambda x: lax.pad(x, 2.0, [(0, 0, 1), (0, 0, 0)]), "34"),
    )


def lookups() -> Iterator[Row]:
    """Positions that are known when the program runs."""
    yield from rows(
        "gather",
        (lambda x, i: x[i], "3b d", "fn"),
        (lambda x, i: x[:, i], "a4 d", "fn"),
        (lambda x, i: x[i], "3b cd", "fn"),
        (lambda x, i: x[:, i], "a4c d", "fn"),
        (lambda x, i, j: x[i, j], "34c d d", "fnn"),
        (lambda x, i, j: x[i, :, j], "3b4 d d", "fnn"),
        (lambda x, i: jnp.take(x, i, 1), "a4c d", "fo"),
        (lambda x, i: jnp.take(x, i, 0, mode="clip"), "3b d", "fo"),
        (lambda x: x[np.array([2, 0])], "3b"),
        (lambda x, i: jnp.take_along_axis(x, i, 1), "34 32", "fn"),
    )
    part, put = lax.dynamic_slice, lax.dynamic_update_slice
    yield from rows(
        "dynamic_slice",
        (lambda x, i: part(x, (i, 0, 0), (2, 4, 5)), "4bc -", "fn"),
        (lambda x, i: part(x, (0, i), (3, 2)), "a4 -", "fo"),
        (lambda x, i: part(x, (i, i), (3, 4)), "ab -", "fo"),
        (lambda x, i: x[i], "4bc -", "fn"),
    )
    yield from rows(
        "dynamic_update_slice",
        (lambda x, y, i: put(x, y, (i, 0)), "4b 2b -", "ffn"),
        (lambda x, y, i: put(x, y, (i, i)), "ab ab -", "ffn"),
        (lambda x, y, i: put(x, y, (0, i)), "a4 a1 -", "ffo"),
        (lambda x, y, i: put(x, y, (i, i)), "34 22 -", "ffo"),
    )
    yield from rows(
        "sort",
        (lambda x: lax.sort(x, 1), "a5c"),
        (lambda x: jnp.argsort(x, 0), "5c"),
        (lambda *xs: lax.sort(xs, 1), "a5 a5"),
        (lambda *xs: lax.sort(xs, 0, num_keys=2), "5a 5a 5a", "nff"),
    )
    yield from rows(
        "top_k",
        (lambda x: lax.top_k(x, 2), "a5"),
        (lambda x: lax.top_k(x, 5), "ab5"),
    )


def windows() -> Iterator[Row]:
    """Of an axis that is whole."""
    for name, start, fn in (
        ("reduce_window_max", -np.inf, lax.max),
        ("reduce_window_min", np.inf, lax.min),
        ("reduce_window_sum", 0.0, lax.add),
    ):
        of = functools.partial(pool, start, fn)
        yield from rows(
            name,
            (of((1, 2, 2, 1), (1, 2, 2, 1)), "a45b"),
            (of((1, 3, 2, 1), padding="SAME"), "a45b"),
            (of((2, 1), padding=[(1, 0), (0, 0)]), "4b"),
            (of((1, 2), (1, 2), [(0, 0), (0, 1)]), "a4"),
            (of((1, 2), padding="SAME", window_dilation=(1, 2)), "a4"),
            (of((1, 2), padding="SAME", base_dilation=(1, 2)), "a4"),
            (of((1, 1), (1, 2)), "a4"),
        )
    yield from rows(
        "reduce_window_max", (lambda x: nn.max_pool(x, (2, 2), (2, 2)), "a45b")
    )
    yield from rows(
        "reduce_window_sum",
        (lambda x: nn.avg_pool(x, (2, 2), padding="SAME"), "a45b"),
    )


def pool(
    start: float,
    fn: Any,
    size: Sequence[int],
    strides: Any = None,
    padding: Any = "VALID",
    **more: Any,
) -> Any:
    """A reduction of windows."""
    strides = strides or [1] * len(size)
    return lambda x: lax.reduce_window(
        x, start, fn, size, strides, padding, **more
    )


def writes() -> Iterator[Row]:
    """Into positions that run time chooses."""
    for method in ("add", "subtract", "multiply", "min", "max", "set"):
        name = {"set": "scatter", "subtract": "scatter-sub"}.get(
            method, f"scatter-{method[:3]}"
        )
        at = functools.partial(written, method)
        yield from rows(
            name,
            (lambda x, y, i, at=at: at(x, i, y), "3b 6b 6", "ffn"),
            (
                lambda x, y, i, at=at: at(x, (slice(None), i), y),
                "a3 a6 6",
                "ffn",
            ),
            (lambda x, i, at=at: at(x, i, 2.0), "3b 2", "fn"),
            (
                lambda x, i, at=at: at(x, (slice(None), 0, i), 0.0),
                "a43 2",
                "fn",
            ),
        )
        one = lambda x, y, i, at=at: at(x, i, y)
        yield Row(name, jax.vmap(one), "a3b a2b a2", "ffn")
    yield from rows(
        "scatter",
        (lambda x, i: x.at[i].apply(jnp.exp), "3b 2", "fn"),
        (
            jax.vmap(lambda x, y, i: lax.dynamic_update_slice(x, y, (i, 0))),
            "a4b a2b a",
            "ffn",
        ),
        (lambda x, y, i: x.at[i].set(y, mode="clip"), "3b 2b 2", "ffo"),
    )
    drop = lambda x, y, i: x.at[i].add(y, mode="drop")
    yield Row("scatter-add", drop, "3b 2b 2", "ffo")


def written(method: str, x: Array, at: Any, y: Any) -> Array:
    """``x`` with something done at some positions."""
    return getattr(x.at[at], method)(y)


def matrices() -> Iterator[Row]:
    """Of which the last axes are whole."""
    m = np.random.default_rng(1).normal(size=(3, 3)) + 4 * np.eye(3)
    eye = 9 * np.eye(3)
    linalg = lax.linalg
    yield from rows(
        "fft",
        (jnp.fft.fft, "a4"),
        (lambda x: jnp.fft.irfft(jnp.fft.rfft(x, axis=1), axis=1), "a4b"),
        (lambda x: jnp.fft.fft2(x, axes=(0, 1)), "34c"),
    )
    solve = linalg.triangular_solve
    yield from rows(
        "triangular_solve",
        (lambda x: solve(m, x, left_side=True, lower=True), "3b"),
        (lambda x: solve(m, x, lower=True), "a3"),
        (lambda x, y: solve(x + eye, y, left_side=True), "a33 a3b"),
    )
    yield from rows(
        "custom_linear_solve",
        (lambda x: jnp.linalg.solve(m, x), "3b"),
        (lambda x: jnp.linalg.solve(m, x), "a3b"),
    )
    of_one: dict[str, Callable[..., Any]] = {
        "lu": lambda x: linalg.lu(x + m),
        "cholesky": lambda x: linalg.cholesky(x + eye),
        "eigh": jnp.linalg.eigvalsh,
        "eig": lambda x: jnp.linalg.eigvals(x + m),
        "svd": lambda x: jnp.linalg.svd(x + m, compute_uv=False),
        "qr": lambda x: jnp.linalg.qr(x + m),
    }
    for name, fn in of_one.items():
        yield Row(name, fn, "a33")
    yield Row("householder_product", linalg.householder_product, "a33 a3")
    yield Row(
        "lu_pivots_to_permutation",
        lambda x: linalg.lu_pivots_to_permutation(
            jnp.clip(x, 0, 2).astype(np.int32), 3
        ),
        "a3",
        "n",
    )
    yield Row(
        "tridiagonal_solve",
        lambda x, y: linalg.tridiagonal_solve(x, x + 9, x, y),
        "a4 a43",
    )


def groups() -> Iterator[Row]:
    """Matrices of groups of rows, and axes that `vmap` mapped."""
    yield from rows(
        "ragged_dot_general",
        (lax.ragged_dot, "6b 2bc 2", "ffn"),
        (lambda x, w, n: lax.ragged_dot(x, w, n).sum(0), "6b 2bc 2", "ffn"),
    )
    for name in ("psum", "pmax", "pmin"):
        fn = getattr(lax, name)
        mapped = jax.vmap(lambda x, fn=fn: x - fn(x, "i"), axis_name="i")
        yield Row(name, mapped, "ab" if name == "psum" else "4b")
    yield from rows(
        "psum",
        (jax.vmap(lambda x: x - lax.pmean(x, "i"), axis_name="i"), "4b"),
        (
            jax.vmap(lambda x, y: lax.psum((x, y), "i"), axis_name="i"),
            "4b 4c",
        ),
    )


def edges() -> Iterator[Row]:
    """What was wrong once: nothing to sum over, out of bounds, other widths."""
    bitcast = lax.bitcast_convert_type
    yield from rows("top_k", (lambda x: lax.top_k(x, 2, axis=1), "a5c"))
    yield Row(
        "reduce_window_sum",
        pool(0.0, lax.add, (1, 1), (1, 2), [(0, 0), (2, 2)]),
        "a4",
    )
    yield Row(
        "reduce_window_max",
        pool(-np.inf, lax.max, (1, 2), (1, 2), [(0, 0), (2, 2)]),
        "a4",
    )
    yield from rows(
        "gather",
        (lambda x, i: x.at[i].get(mode="fill", fill_value=7), "3b d", "fo"),
        (lambda x, i: x.at[i].get(mode="fill"), "3b d", "io"),
        (lambda x, i: x.at[i].get(mode="fill"), "3b d", "fo"),
        (jax.vmap(lambda x, i: x[i]), "a3b a", "fn"),
        (lambda x, i: jnp.take_along_axis(x, i, 1), "a3b a21", "fn"),
    )
    yield Row("div", lax.div, "ab ab", "ii")
    yield Row("reduce_prod", lambda x: lax.reduce_prod(x, (1,)), "a0")
    yield Row("reduce_max", lambda x: lax.reduce_max(x, (1,)), "a0")
    yield Row("reduce_and", lambda x: lax.reduce_and(x, (1,)), "a0", "b")
    yield Row("dot_general", jnp.matmul, "a0 0b")
    yield Row(
        "scan", lambda *xs: lax.scan(lambda x, w: (x + w, w), *xs), "34 034"
    )
    yield from rows(
        "bitcast_convert_type",
        (lambda x: bitcast(x, jnp.int32), "ab"),
        (lambda x: bitcast(x.astype(jnp.int32), jnp.int64), "ab2"),
    )
    yield from rows(
        "pad",
        (lambda x: lax.pad(x, 0.0, [(0, 0, 0), (1, 2, 1)]), "ab"),
        (lambda x: lax.pad(x, 1.0, [(0, -1, 0), (-1, 1, 0)]), "4b"),
        (lambda x: lax.pad(x, 0.0, [(0, 1, 2), (0, 0, 0)]), "4b"),
    )
    yield from rows(
        "reshape",
        (lambda x: x[:0, None].reshape(0, 4, 5), "3bc"),
        (lambda x: x[:, :0].reshape(5, 0), "a4c"),
    )


def around(x: Array, w: Array) -> Array:
    """To hidden units and back."""
    return jnp.tanh(x @ w) @ w.T


@jax.custom_vjp
def own_rule(x: Array, w: Array) -> Array:
    """The same, with a derivative of its own."""
    return around(x, w)


own_rule.defvjp(lambda *xs: (around(*xs), xs), lambda xs, y: (y, xs[1]))


def calls() -> Iterator[Row]:
    """Programs in programs."""
    jitted = jax.jit(around)
    yield from rows(
        "jit",
        (jitted, "ab bc"),
        (lambda x, w: jitted(x, w) + jitted(x * 2, w), "ab bc"),
        (jax.jit(jnp.matmul), "ab bc"),
    )
    yield from rows(
        "custom_jvp_call",
        (jax.nn.relu, "ab"),
        (lambda x, w: jax.nn.relu(x @ w), "ab bc"),
    )
    yield from rows("custom_vjp_call", (own_rule, "ab bc"))
    yield from rows("remat2", (jax.checkpoint(around), "ab bc"))
    branches = (lambda x, y: x + y, lambda x, y: y, lambda x, y: x * 2)
    yield from rows(
        "cond",
        (
            lambda p, *xs: lax.cond(p, around, lambda x, w: x, *xs),
            "- ab bc",
            "bff",
        ),
        (lambda p, x: lax.cond(p, jnp.sin, lambda x: x * 0, x), "- ab", "bf"),
        (lambda i, *xs: lax.switch(i, branches, *xs), "- ab ab", "nff"),
        (lambda p, *xs: lax.cond(p, *branches[1:], *xs), "- ab ab", "bff"),
    )

    def loop(fn: Any, x: Any) -> Any:
        return lax.fori_loop(0, jnp.int32(3), lambda i, x: fn(x), x)

    def until(n: Array, x: Array) -> Any:
        return lax.while_loop(
            lambda c: c[0] < n, lambda c: (c[0] + 1, c[1] * 2), (0, x)
        )

    yield from rows(
        "while",
        (lambda x, w: loop(lambda x: around(x, w), x), "ab bc"),
        (lambda *xs: loop(lambda xs: xs[::-1], xs), "ab ab"),
        (lambda x: loop(lambda y: x - y, jnp.zeros((3, 4))), "ab"),
        (
            lambda x: lax.while_loop(lambda x: x.sum() < 9, lambda x: x + 1, x),
            "34",
            "p",
        ),
        (until, "- ab", "nf"),
    )

    def both(x: Array, w: Array) -> tuple[Array, Array]:
        return x + w, x * w

    yield from rows(
        "scan",
        (
            lambda *xs: lax.scan(lambda x, w: (around(x, w), None), *xs),
            "ab 2bc",
        ),
        (lambda *xs: lax.scan(both, *xs), "ab 3ab"),
        (lambda x, w: lax.scan(both, x, w, reverse=True), "ab 3ab"),
        (lambda *xs: lax.scan(both, *xs), "ab 1ab"),
        (
            lambda x, w: lax.scan(lambda x, _: (around(x, w), x), x, None, 3),
            "ab bc",
        ),
        (lambda *xs: lax.scan(lambda x, w: (w, x), *xs), "ab 3ab"),
        (lambda w: lax.scan(both, jnp.zeros((3, 4)), w), "3ab"),
        (lambda xs, w: lax.map(lambda x: x @ w, xs), "2ab bc"),
        (lambda *xs: lax.scan(lambda x, w: (x, x @ w), *xs)[1], "ab 2bc"),
    )


FAMILIES = (
    *(elementwise, without_operands, sums, products, positions, lookups),
    *(windows, calls, writes, matrices, groups, edges),
)
ROWS = [row for family in FAMILIES for row in family()]
# A second each to compile.
HEAVY = ("igamma", "igammac", "regularized_incomplete_beta")

# Names that no program of a supported version shows here.
RARE = {
    **dict.fromkeys(("log2", "one_minus_square"), "from JAX 0.12 on"),
    "igamma_grad_a": "the derivative of igamma, as slow to compile",
    "mulhi": "from JAX 0.10.2 on",
    "pjit": "jit, in earlier versions",
    "closed_call": "a call that JAX makes while it differentiates",
    "core_call": "the same",
    "checkpoint": "remat2, in some versions",
    "copy_p": "copy, in some versions",
    "empty2": "empty, where shapes are given as operands",
    "threefry2x32": "inside of random_bits, when that is compiled",
    "geqrf": "inside of qr, when that is compiled",
    "dim_as_value": "a size that is a symbol",
    **dict.fromkeys(
        ("layout_constraint", "mesh_cast", "pvary", "reshard"), "on a mesh"
    ),
}


@pytest.fixture
def x64() -> Iterator[None]:
    """Exact but for a rounding in which no mistake hides."""
    with jax.enable_x64(True):
        yield


@functools.cache
def traced(row: Row) -> Any:
    """The jaxpr of a row's program."""
    rng = np.random.default_rng(0)
    xs = [draw(rng, *x) for x in zip(row.types, row.shapes, strict=True)]
    return jax.make_jaxpr(row.fn)(*xs)


def names(program: Any) -> set[str]:
    """Of all primitives in a program."""
    found = set()
    for eqn in program.eqns:
        inner = jax.tree.leaves(list(eqn.params.values()), is_leaf=is_program)
        found |= {eqn.primitive.name}.union(
            *map(names, filter(is_program, inner))
        )
    return found


def is_program(x: Any) -> bool:
    """Whether a parameter of an equation is one."""
    return hasattr(x, "eqns")


class Units:
    """Ids for all axes of a row's operands, and what a first walk joins."""

    def __init__(self, row: Row) -> None:
        self.row, self.ids = row, Ids()
        self.axes = [tuple(map(self.ids.new, shape)) for shape in row.shapes]
        self.outs = self.walk(list(map(unknown, traced(row).in_avals)))[1]
        self.frozen = set(self.ids.frozen())

    def walk(self, known: Sequence[Known]) -> tuple[Walk, list[Value]]:
        """Sums and outputs, with what is known of the operands."""
        walk = Walk(self.ids)
        three = zip(self.row.shapes, self.axes, known, strict=True)
        ins = [Value(*here, (i, ())) for i, here in enumerate(three)]
        return walk, walk.closed(traced(self.row), ins)

    def of(self, *axes: Array) -> set[int]:
        """The units of some axes, those that may go."""
        found = {int(x) for axis in axes for x in self.ids.resolve(axis).flat}
        return found - self.frozen - {0}

    def signed(self) -> list[tuple[str, Array]]:
        """The axes with a letter."""
        pairs = zip(self.row.operands, self.axes, strict=True)
        several = [x for pair in pairs for x in zip(*pair, strict=True)]
        return [(sign, x) for sign, x in several if sign.isalpha()]

    def gone(
        self, axes: Sequence[Array | None], shape: Sequence[int], dead: set[int]
    ) -> list[Array]:
        """Which positions of each axis go with the ``dead`` units."""
        return [
            np.zeros(n, bool)
            if x is None
            else np.isin(self.ids.resolve(x), sorted(dead)).any(-1)
            for x, n in zip(axes, shape, strict=True)
        ]

    def some(self, rng: np.random.Generator, share: float) -> set[int]:
        """Units that may all go: of no axis more than a half."""
        axes = [x for axes in self.axes for x in axes]
        ends = [x for out in self.outs for x in out.ids if x is not None]
        sizes = [len(x) for x in axes + ends]
        most = [n // 2 for n in sizes[: len(axes)]]
        most += [max(n - 1, 0) for n in sizes[len(axes) :]]
        dead: set[int] = set()
        for unit in rng.permutation(sorted(self.of(*axes))).tolist():
            more = {*dead, unit}
            gone = self.gone(axes + ends, sizes, more)
            fits = all(x.sum() <= n for x, n in zip(gone, most, strict=True))
            if fits and rng.random() < share:
                dead = more
        return dead


def unknown(aval: Any) -> Known:
    """Nothing is known of a value."""
    return nothing(len(aval.shape), aval.dtype)


class Operand(NamedTuple):
    """What a program is run on, and what is known of it before."""

    x: Array
    known: Known
    same: int | None = None  # an axis along which nothing varies

    def cut(self, gone: list[Array]) -> Small:
        """What is left of it."""
        masks = tuple(~here[None] if here.any() else None for here in gone)
        at = [np.flatnonzero(~here) for here in gone]
        if self.same is not None:
            at[self.same] = at[self.same][:1]
        return Small(self.x[np.ix_(*at)], self.x.shape, masks)


# What is known of an operand where positions go: 0, nothing, constants of any
# kind, those that repeat a vector, all of the operand, which is 0 there. The
# last two: any entries, wherever; nothing, of what is the same along an axis.
STATES = ["zero", "open", "fixed", "vector", "whole", "some", "same"]
# The first seeds: of the first operand, and of the others.
FIRST = [
    *(("zero", "zero"), ("vector", "fixed"), ("some", "open")),
    ("vector", "some"),
]


def states(rng: np.random.Generator, seed: int, n: int) -> list[str]:
    """What is known of each operand."""
    if seed < len(FIRST):
        first, rest = FIRST[seed]
        return [first, *[rest] * n][:n]
    return rng.choice(STATES, n).tolist()


def operand(
    rng: np.random.Generator, state: str, kind: str, gone: list[Array]
) -> Operand:
    """An operand of which something is known where positions go."""
    shape = tuple(map(len, gone))
    x = draw(rng, kind, shape)
    zero = np.zeros_like(x, shape=())
    axes = [k for k, here in enumerate(gone) if here.any()]
    kept = [np.broadcast_to(~along(gone[k], k, shape), shape) for k in axes]
    here = ~np.all([np.ones(shape, bool), *kept], axis=0)
    if state == "same" and x.size and shape:
        k = int(rng.integers(len(shape)))
        x = np.broadcast_to(x.take([0], k), shape)
        return Operand(x, nothing(x.ndim, x.dtype), k)
    if state == "some":
        known = arbitrary(rng, kind, shape)
        return Operand(np.where(known.flags, known.value, x), known)
    if state == "whole":
        return Operand(np.where(here, zero, x), Stored(x, kept, x.dtype))
    if state == "open" or not kept:
        return Operand(x, nothing(x.ndim, x.dtype))
    if state == "zero":
        return Operand(np.where(here, zero, x), Stored(None, kept, x.dtype))
    if state == "vector":
        k = int(rng.choice(axes))
        here = along(gone[k], k, shape)
        vector = along(draw(rng, kind, (shape[k],)), k, shape)
        x, some = np.where(here, vector, x), np.where(here, vector, zero)
        return Operand(x, Known(here, some))
    return Operand(x, Known(here, np.where(here, x, zero)))


def arbitrary(
    rng: np.random.Generator, kind: str, shape: Sequence[int]
) -> Known:
    """Any entries are known, and any of those are 0."""
    inner = [n if rng.random() < 0.6 else min(n, 1) for n in shape]
    outer = shape if rng.random() < 0.5 else inner
    flags = rng.random(inner) < rng.choice([0.0, 0.5, 0.8, 1.0])
    zero = rng.random(inner) < rng.choice([0.0, 0.5, 0.8, 1.0])
    value = draw(rng, kind, inner)
    value = np.where(flags & ~zero, value, np.zeros_like(value))
    return Known(np.broadcast_to(flags, outer), np.broadcast_to(value, outer))


def along(line: Array, axis: int, shape: Sequence[int]) -> Array:
    """A line that broadcasts to the other axes."""
    return line.reshape([-1 if k == axis else 1 for k in range(len(shape))])


def needed(units: Units, walk: Walk, outs: list[Value]) -> set[int]:
    """The units of all that is summed and may not be 0.

    Constants can be taken from a sum that is an output, and put elsewhere.
    """
    found: set[int] = set()
    for site in walk.sites:
        adds = site.adds
        if site.fixed is not None and any(out.site is site for out in outs):
            adds = adds & ~site.fixed
        found |= units.of(site.ids[adds])
    return found


def assert_same(x: Array, y: Array, atol: float = 1e-12) -> None:
    """Equal, but for the rounding of sums."""
    if np.issubdtype(np.asarray(y).dtype, np.inexact):
        np.testing.assert_allclose(x, y, 1e-12, atol)
    else:
        np.testing.assert_array_equal(x, y)


def assert_constant(known: Known, y: Array) -> None:
    """What is said to be known is so, but for 0/0."""
    assert known.dtype == y.dtype
    flags = np.broadcast_to(known.flags, y.shape) & ~np.isnan(y)
    value = np.broadcast_to(known.value, y.shape)
    assert_same(value[flags], y[flags], 0)


class Job:
    """A row and a seed: what is put in, and what comes out by what is known.

    The first of ``inputs`` is cut; of the second any entries are known.
    """

    def __init__(self, row: Row, seed: int) -> None:
        rng, self.row, self.units = np.random.default_rng(seed), row, Units(row)
        known = states(rng, seed, len(row.shapes))
        chosen = self.units.some(rng, 0.7 if seed else 1)
        several = zip(known, row.types, self.gone(chosen), strict=True)
        self.operands = [operand(rng, *here) for here in several]
        self.walk, self.outs = self.units.walk([x.known for x in self.operands])
        self.dead = chosen - needed(self.units, self.walk, self.outs)
        if not seed:  # what is 0 everywhere adds nothing
            asked = self.units.of(*(x for _, x in self.units.signed()))
            assert self.dead >= chosen & asked
        kinds = list(zip(row.types, row.shapes, strict=True))
        some = [arbitrary(rng, *kind) for kind in kinds]
        xs = [draw(rng, *kind) for kind in kinds]
        others = [
            np.where(k.flags, k.value, x) for k, x in zip(some, xs, strict=True)
        ]
        self.inputs = [[x.x for x in self.operands], others]
        self.known = [
            [out.known for out in outs]
            for outs in (self.outs, self.units.walk(some)[1])
        ]

    def gone(self, dead: set[int]) -> list[list[Array]]:
        """Which positions of the operands go with the ``dead`` units."""
        pairs = zip(self.units.axes, self.row.shapes, strict=True)
        return [self.units.gone(*pair, dead) for pair in pairs]

    def cut(self) -> list[Small]:
        """What is left of the operands."""
        pairs = zip(self.operands, self.gone(self.dead), strict=True)
        return [x.cut(gone) for x, gone in pairs]

    def arrays(self) -> Any:
        """All that is put in."""
        return self.inputs, [small.x for small in self.cut()]

    def rewrite(self, left: Sequence[Any]) -> list[Small]:
        """The cut program's outputs."""
        pairs = zip(self.cut(), left, strict=True)
        smalls = [replace(small, x=x) for small, x in pairs]
        return Rewrite().closed(traced(self.row), smalls)

    def run(self, inputs: Any, left: Any) -> Any:
        """The whole program on each of its inputs, and the cut one."""
        found = self.rewrite(left)  # as it is traced, once
        self.masks = [small.masks for small in found]
        wholes = [jax.tree.leaves(self.row.fn(*xs)) for xs in inputs]
        return wholes, [small.full() for small in found]

    def check(self, wholes: Any, smalls: Any) -> None:
        """All that is left is equal, and all that is known is so."""
        for ys, known in zip(wholes, self.known, strict=True):
            for y, k in zip(ys, known, strict=True):
                assert_constant(k, np.asarray(y))
        for several in zip(
            self.outs, wholes[0], smalls, self.masks, strict=True
        ):
            self.check_left(*several)

    def check_left(
        self, out: Value, y: Array, small: Array, masks: Any
    ) -> None:
        """An output of the cut program is what is left of the whole one's."""
        gone = self.units.gone(out.ids, out.shape, self.dead)
        y = np.asarray(y)
        for lost, mask in zip(gone, masks, strict=True):
            left = np.ones_like(lost) if mask is None else mask[0]
            np.testing.assert_array_equal(left, ~lost, "not what the walk says")
        if out.site is not None and out.site.terms is not None:
            (lost,) = self.units.gone([out.site.ids], [0], self.dead)
            y = y - out.site.terms(lost & out.site.adds)
        assert_same(small, y[np.ix_(*(np.flatnonzero(~x) for x in gone))])


def check(rows: Sequence[Row], seeds: Sequence[int]) -> None:
    """Runs rows, all in one program, so that XLA compiles once."""
    errors: list[Exception] = []

    @contextlib.contextmanager
    def noted(row: Row) -> Iterator[None]:
        try:
            yield
        except Exception as error:
            error.add_note(f"in the row {row}")
            errors.append(error)

    jobs: list[Job] = []
    for row in rows:
        with noted(row):
            jobs += [Job(row, seed) for seed in seeds]

    def programs(several: list[Any]) -> dict[int, Any]:
        found = {}
        for i, (job, arrays) in enumerate(zip(jobs, several, strict=True)):
            with noted(job.row):
                found[i] = job.run(*arrays)
        return found

    for i, arrays in jax.jit(programs)([job.arrays() for job in jobs]).items():
        with noted(jobs[i].row):
            jobs[i].check(*arrays)
    if errors:
        raise ExceptionGroup(f"{len(errors)} of {len(jobs)}", errors)


def check_units(row: Row) -> None:
    """Axes with a letter are units of their own, and no others."""
    units = Units(row)
    found: dict[str, Array] = {}
    for sign, axis in units.signed():
        rows = units.ids.resolve(axis)
        assert units.of(rows) == set(rows.flat) - {0}, f"{sign} is frozen"
        assert len(np.unique(rows, axis=0)) == len(rows), f"{sign} is not free"
        np.testing.assert_array_equal(found.setdefault(sign, rows), rows, sign)
    several = [set(x.flat) - {0} for k, x in found.items() if k.islower()]
    assert sum(map(len, several)) == len(set().union(*several))


def check_costs(row: Row) -> None:
    """Of what is left as many multiply-adds are counted as it takes."""
    job = Job(row, 0)
    products = job.walk.products
    through = [x for p in products for x in p.axes if x is not None]
    job.dead &= job.units.of(*through)  # a batch is not counted
    program = jax.make_jaxpr(lambda *xs: [v.full() for v in job.rewrite(xs)])(
        *(small.x for small in job.cut())
    )
    ids = Ids()
    again = Walk(ids)
    again.closed(
        program,
        [
            Value(v.shape, tuple(map(ids.new, v.shape)), unknown(v))
            for v in program.in_avals
        ],
    )
    now, nonzero = again.multiply_adds()[0], job.walk.multiply_adds()[1]
    assert nonzero == now or row.name == "while"  # all that is carried may be
    left = 0.0
    for p in products:
        gone = job.units.gone(p.axes, [1] * len(p.axes), job.dead)
        left += p.times * p.whole * np.prod([1 - x.mean() for x in gone])
    assert left == pytest.approx(now)


def each(rows: list[Row]) -> Any:
    """Parametrizes a test by rows."""
    ids = [f"{row.name}-{row.axes.replace(' ', ',')}" for row in rows]
    return pytest.mark.parametrize("row", rows, ids=ids)


@each(ROWS)
def test_units_are_the_axes_that_are_aligned(row: Row) -> None:
    assert row.name in names(traced(row))
    check_units(row)


@pytest.mark.sweep(4)
@pytest.mark.parametrize("family", FAMILIES, ids=lambda family: family.__name__)
def test_the_cut_program_equals_the_whole_one(family: Any) -> None:
    """And what is constant is, in all rows of a family."""
    rows = [row for row in family() if row.name not in HEAVY]
    # Constants of elementwise operations are compiled one by one.
    check(rows[::5] if family is elementwise else rows, [0])


@each([*products(), *calls()])
def test_multiply_adds_are_those_of_the_cut_program(row: Row) -> None:
    check_costs(row)


@pytest.mark.slow
@pytest.mark.parametrize("family", FAMILIES, ids=lambda family: family.__name__)
def test_more_of_each(family: Any) -> None:
    check(list(family()), range(1, 3))


def test_every_primitive_has_a_row() -> None:
    """Of those that something is known of."""
    shown = {row.name for row in ROWS}
    understood = {*RECORDS, *RULES, *SMALLER, *CALLS}
    assert shown | RARE.keys() >= understood
    assert not shown & RARE.keys()
