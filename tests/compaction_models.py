"""Models of real shapes, small, and random ones: ``(fn, params, args)``."""

import random
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn
from jax import lax


class Model(NamedTuple):
    """A function and what it is called with."""

    fn: Callable[..., Any]
    params: Any
    args: tuple[Any, ...]


def _linen(module: nn.Module, *shape: int) -> Model:
    x = jnp.asarray(np.random.default_rng(0).standard_normal(shape))
    return Model(module.apply, module.init(jax.random.key(0), x), (x,))


class Residual(nn.Module):
    """Residual blocks with norms and attention."""

    @nn.compact
    def __call__(self, x):
        h = nn.Dense(8)(x)
        y = nn.gelu(nn.Dense(12)(nn.LayerNorm()(h)))
        h = h + nn.Dense(8)(y)
        h = h + nn.MultiHeadDotProductAttention(2)(nn.RMSNorm()(h))
        return nn.Dense(3)(nn.LayerNorm()(h))


class Convolutional(nn.Module):
    """Convolutions, a depthwise and a grouped one, norms, pools, flatten."""

    @nn.compact
    def __call__(self, x):
        x = nn.Conv(6, (3, 3), use_bias=False)(x)
        x = nn.relu(nn.BatchNorm(use_running_average=True)(x))
        x = nn.max_pool(x, (2, 2), (2, 2))
        x = nn.relu(nn.Conv(6, (3, 3), feature_group_count=6)(x))
        x = nn.avg_pool(nn.Conv(8, (1, 1))(x), (2, 2), (2, 2))
        x = nn.silu(nn.Dense(7)(x.reshape(x.shape[0], -1)))
        return nn.Dense(3)(x)


class Residual18(nn.Module):
    """ResNet-18 with few channels."""

    width: int = 4

    @nn.compact
    def __call__(self, x):
        def norm(x):
            return nn.BatchNorm(use_running_average=True)(x)

        x = nn.relu(norm(nn.Conv(self.width, (3, 3), use_bias=False)(x)))
        for stage in range(4):
            for block in range(2):
                n = self.width * 2**stage
                step = (2, 2) if stage and not block else (1, 1)
                y = nn.Conv(n, (3, 3), strides=step, use_bias=False)(x)
                y = nn.Conv(n, (3, 3), use_bias=False)(nn.relu(norm(y)))
                if stage and not block:
                    x = norm(nn.Conv(n, (1, 1), step, use_bias=False)(x))
                x = nn.relu(x + norm(y))
        return nn.Dense(3)(x.mean((1, 2)))


def _norm(x, scale, shift):
    mean = x.mean(-1, keepdims=True)
    variance = (x * x).mean(-1, keepdims=True) - mean * mean
    return (x - mean) * lax.rsqrt(variance + 1e-5) * scale + shift


def _rotate(x):
    half = x.shape[-1] // 2
    turns = jnp.arange(x.shape[1])[:, None] * 0.01 ** jnp.linspace(0, 1, half)
    cos, sin = jnp.cos(turns)[None, :, None], jnp.sin(turns)[None, :, None]
    a, b = x[..., :half], x[..., half:]
    return jnp.concatenate([a * cos - b * sin, a * sin + b * cos], -1)


def gpt(layers=2, width=8, heads=4, groups=2, size=4, inner=12, words=9):
    """Blocks under a scan: fused qkv, grouped queries, a tied embedding."""
    ends = [heads * size, (heads + groups) * size]
    fused = (heads + 2 * groups) * size

    def block(x, w):
        batch, time, _ = x.shape
        h = _norm(x, w["s1"], w["t1"])
        q, k, v = jnp.split(h @ w["qkv"] + w["bqkv"], ends, axis=-1)
        q = _rotate(q.reshape(batch, time, heads, size))
        q = q.reshape(batch, time, groups, heads // groups, size)
        k = _rotate(k.reshape(batch, time, groups, size))
        v = v.reshape(batch, time, groups, size)
        scores = jnp.einsum("btkgd,bskd->bkgts", q, k) / np.sqrt(size)
        causal = jnp.tril(jnp.ones((time, time), bool))
        weights = jax.nn.softmax(jnp.where(causal, scores, -1e9))
        a = jnp.einsum("bkgts,bskd->btkgd", weights, v)
        x = x + a.reshape(batch, time, heads * size) @ w["o"]
        h = _norm(x, w["s2"], w["t2"])
        return x + jax.nn.gelu(h @ w["up"] + w["bup"]) @ w["down"], None

    def fn(params, tokens):
        x = params["emb"][tokens]
        x, _ = lax.scan(jax.checkpoint(block), x, params["blocks"])
        return _norm(x, params["s"], params["t"]) @ params["emb"].T

    shapes = {
        "s1": (width,),
        "t1": (width,),
        "s2": (width,),
        "t2": (width,),
        "qkv": (width, fused),
        "bqkv": (fused,),
        "o": (heads * size, width),
        "up": (width, inner),
        "bup": (inner,),
        "down": (inner, width),
    }
    blocks = {k: jnp.zeros((layers, *s)) for k, s in shapes.items()}
    params = {"blocks": blocks, "emb": jnp.zeros((words, width))}
    params |= {"s": jnp.zeros(width), "t": jnp.zeros(width)}
    return Model(fn, params, (jnp.arange(6).reshape(2, 3) % words,))


def autoencoder() -> Model:
    """The decoder is the encoder, transposed."""

    def fn(params, x):
        h = x
        for w in params:
            h = jnp.tanh(h @ w)
        for w in params[::-1]:
            h = jnp.tanh(h) @ w.T
        return h

    x = jnp.asarray(np.random.default_rng(0).standard_normal((3, 6)))
    return Model(fn, [jnp.zeros((6, 8)), jnp.zeros((8, 4))], (x,))


MODELS: dict[str, Callable[[], Model]] = {
    "mlp": lambda: _linen(
        nn.Sequential(
            [nn.Dense(10), nn.relu, nn.Dense(8), nn.tanh, nn.Dense(3)]
        ),
        *(5, 4),
    ),
    "residual": lambda: _linen(Residual(), 2, 3, 5),
    "convolutional": lambda: _linen(Convolutional(), 2, 8, 8, 3),
    "resnet18": lambda: _linen(Residual18(), 1, 16, 16, 3),
    "gpt": gpt,
    "autoencoder": autoencoder,
}

PLACES = np.array([2, 0, 2])
MATRIX = np.array([[4.0, 1, 0], [1, 5, 2], [0, 1, 3]])
ROWS: dict[str, Callable[[Any], Any]] = {  # along the rows of a batch of 3
    "segments": lambda h: h + jax.ops.segment_sum(h, PLACES, 3),
    "segments_max": lambda h: jax.ops.segment_max(h, np.array([1, 0, 2]), 3),
    "set": lambda h: h.at[1].set(0.5),
    "multiply": lambda h: h.at[PLACES].multiply(2.0),
    "unit_set": lambda h: h.at[:, 1].set(0.5),
    "along": lambda h: jnp.take_along_axis(h, PLACES[:, None], 0),
    "each": lambda h: jax.vmap(lambda x, i: x[i], (None, 0))(h, PLACES),
    "written": lambda h: jax.vmap(
        lambda c, x, i: lax.dynamic_update_slice(c, x[None], (i, 0))
    )(jnp.zeros((3, 2, h.shape[-1])), h, PLACES // 2).sum(1),
    "associative": lambda h: lax.associative_scan(jnp.add, h) / 3,
    "between": lambda h: lax.pad(h, 0.0, ((0, 0, 1), (0, 0, 0)))[1:4],
    "less": lambda h: h + lax.pad(h, 0.0, ((-2, 2, 0), (0, 0, 0))),
    "mapped": jax.vmap(lambda x: x - lax.pmean(x, "i"), axis_name="i"),
    "fourier": lambda h: jnp.fft.fft(h, axis=0).real,
    "solve": lambda h: jnp.linalg.solve(MATRIX, h),
    "best": lambda h: lax.top_k(h, 3, axis=0)[0],
}

STEPS = (
    *("dense", "bare", "relu", "sigmoid", "gelu", "cos", "norm", "residual"),
    *("concatenate", "heads", "gate", "softmax", "half", "reverse", "maximum"),
    *("pad", "scan", "cumulate", "shift", "twice", "groups", *ROWS),
)


def random_model(seed: int) -> Model:
    """Random steps; random rows and columns of its parameters are 0."""
    choose, rng = random.Random(seed), np.random.default_rng(seed)
    steps = [choose.choice(STEPS) for _ in range(choose.randint(1, 5))]
    sizes = [choose.choice([4, 6]) for _ in steps]
    made: dict[str, jax.Array] = {}

    def make(name: str, *shape: int) -> jax.Array:
        w = rng.standard_normal(shape)
        for axis, n in enumerate(shape):
            if choose.random() < 0.6:
                dead = np.expand_dims(
                    rng.random(n) < 0.4,
                    tuple(k for k in range(len(shape)) if k != axis),
                )
                w = np.where(dead, 0, w)
        return made.setdefault(name, jnp.asarray(w))

    def run(get, x):
        h = x @ get("in", 4, 6) + get("inb", 6)
        for i, (step, m) in enumerate(zip(steps, sizes, strict=True)):
            h = _step(step, m, lambda k, *s, i=i: get(f"{k}{i}", *s), h)
        n = h.shape[-1]
        return h @ get("out", n, 3) + get("outb", 3)

    x = jnp.asarray(rng.standard_normal((3, 4)))
    run(make, x)
    return Model(
        lambda params, x: run(lambda name, *_: params[name], x), made, (x,)
    )


def _step(step, m, get, h):
    n = h.shape[-1]
    plain = {
        "relu": jax.nn.relu,
        "sigmoid": jax.nn.sigmoid,
        "gelu": jax.nn.gelu,
        "cos": jnp.cos,
        "softmax": jax.nn.softmax,
        "half": lambda h: h[:, : n // 2] * 2,
        "reverse": lambda h: h + h[:, ::-1],
        "pad": lambda h: jnp.pad(h, ((0, 0), (1, 0))),
        "cumulate": lambda h: jnp.cumsum(h, 0) / 3,
        "shift": lambda h: jax.nn.relu(h + 1),
        "twice": lambda h: jnp.concatenate([h, h], -1),
    }
    plain |= ROWS
    if step in plain:
        return plain[step](h)
    if step == "dense":
        return h @ get("w", n, m) + get("b", m)
    if step == "bare":
        return h @ get("w", n, m)
    if step == "norm":
        return _norm(h, get("s", n), get("t", n))
    if step == "residual":
        return h + jnp.tanh(h @ get("u", n, 5) + get("b", 5)) @ get("d", 5, n)
    if step == "concatenate":
        return jnp.concatenate([h, jnp.sin(h @ get("k", n, 4))], -1)
    if step == "groups":
        return lax.ragged_dot(h, get("r", 2, n, m), jnp.array([1, 2]))
    if step == "gate":
        a, b = jnp.split(h @ get("g", n, 2 * m), 2, -1)
        return a * jax.nn.sigmoid(b)
    if step == "maximum":
        return jnp.maximum(h, get("m", n))
    if step == "heads" and n % 2 == 0:
        q = (h @ get("q", n, n)).reshape(-1, 2, n // 2)
        k = h.reshape(-1, 2, n // 2)
        a = jax.nn.softmax(jnp.einsum("bhd,chd->hbc", q, k))
        return jnp.einsum("hbc,chd->bhd", a, k).reshape(-1, n)
    if step == "scan":

        def layer(c, w):
            return c + jax.nn.relu(c @ w[0] + w[2]) @ w[1], None

        stack = get("x", 2, n, 6), get("y", 2, 6, n), get("z", 2, 6)
        return lax.scan(layer, h, stack)[0]
    return h
