"""One case to verify a program by: inputs that are drawn, outputs that are kept.

Nothing of the user's data is stored: inputs are drawn from a seed, floats with a
variance of 1, integers in the range that the user's had.
"""

import ast
import operator
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jprune._core.arrays import abstract_array
from jprune.compaction import Certificate

SEED = 0
SAMPLES = 4096  # entries that are kept of each output
SIZES = (2, 3, 1, 4, 8, 16, 32, 64, 128, 256, 512, 1024)  # tried for symbols


class Drawn(NamedTuple):
    """How one argument is drawn."""

    shape: tuple[int, ...]
    dtype: str
    low: int = 0  # of integers, both ends included
    high: int = 1


def cases(args: Any) -> Iterator[list[Drawn]]:
    """How the leaves of ``args`` may be drawn; several tries if there are symbols.

    Which sizes a symbol may have, only the program knows.
    """
    leaves = jax.tree.leaves(args)
    texts = [
        [str(n) for n in np.shape(x) if not isinstance(n, int | np.integer)]
        for x in leaves
    ]
    names = sorted({n for ts in texts for text in ts for n in _symbols(text)})
    for first in SIZES if names else SIZES[:1]:
        for step in (1, 0):
            sizes = {name: first + step * i for i, name in enumerate(names)}
            yield [_drawn(x, sizes) for x in leaves]


def _drawn(x: Any, sizes: dict[str, int]) -> Drawn:
    known = abstract_array(x)
    shape = tuple(
        int(n)
        if isinstance(n, int | np.integer)
        else int(_value(_parsed(str(n)), sizes))
        for n in known.shape
    )
    dtype, low, high = str(known.dtype), 0, 1
    if jnp.issubdtype(known.dtype, jnp.integer):
        if not isinstance(x, jax.ShapeDtypeStruct) and np.size(x):
            low, high = int(np.min(x)), int(np.max(x))
    elif jnp.issubdtype(known.dtype, jax.dtypes.prng_key):
        key = jax.eval_shape(jax.random.key_data, known)
        name = "key:" + str(jax.random.key_impl(_some_key(x, known)))
        return Drawn(key.shape, name)
    return Drawn(shape, dtype, low, high)


def _some_key(x: Any, known: Any) -> Any:
    if not isinstance(x, jax.ShapeDtypeStruct):
        return x
    for impl in ("threefry2x32", "rbg", "unsafe_rbg"):
        key = jax.random.key(0, impl=impl)
        if key.dtype == known.dtype:
            return key
    raise ValueError(f"`export.save`: no random keys of type {known.dtype}.")


_FUNCTIONS: dict[str, Callable[..., int]] = {
    "floordiv": operator.floordiv,
    "mod": operator.mod,
    "max": max,
    "min": min,
}
_OPERATORS: dict[type, Callable[..., int]] = {
    ast.Add: operator.add,
    ast.Sub: operator.sub,
    ast.Mult: operator.mul,
    ast.Pow: operator.pow,
}


def _parsed(size: str) -> ast.expr:
    return ast.parse(size.replace("^", "**"), mode="eval").body


def _symbols(size: str) -> set[str]:
    names = {n.id for n in ast.walk(_parsed(size)) if isinstance(n, ast.Name)}
    return names - {*_FUNCTIONS}


def _value(node: ast.expr, sizes: dict[str, int]) -> int:
    """A size of ``jax.export``, which it writes as arithmetic, as a number."""
    match node:
        case ast.Constant(value=int(number)):
            return number
        case ast.Name(id=name):
            return sizes[name]
        case ast.UnaryOp(op=ast.USub(), operand=operand):
            return -_value(operand, sizes)
        case ast.BinOp(left=left, op=op, right=right):
            apply = _OPERATORS[type(op)]
            return apply(_value(left, sizes), _value(right, sizes))
        case ast.Call(func=ast.Name(id=name), args=args):
            return _FUNCTIONS[name](*(_value(arg, sizes) for arg in args))
    raise ValueError(f"no size: {ast.unparse(node)}")


def draw(specs: Sequence[Drawn]) -> list[Any]:
    """The same arrays wherever it runs: of the generator's raw bits."""
    bits = np.random.PCG64(SEED)
    return [_draw(bits, spec) for spec in specs]


def _draw(bits: np.random.PCG64, spec: Drawn) -> Any:
    count = int(np.prod(spec.shape, dtype=np.int64))
    raw = np.asarray(bits.random_raw(count), np.uint64).reshape(spec.shape)
    if spec.dtype.startswith("key:"):
        data = jnp.asarray((raw >> np.uint64(32)).astype(np.uint32))
        return jax.random.wrap_key_data(data, impl=spec.dtype[4:])
    dtype = jnp.dtype(getattr(jnp, spec.dtype, spec.dtype))
    if jnp.issubdtype(dtype, jnp.integer):
        whole = 2**64  # numbers below 0 wrap around, and back
        span = np.uint64((spec.high - spec.low + 1) % whole)
        raw = (raw % span if span else raw) + np.uint64(spec.low % whole)
        return jnp.asarray(raw.astype(np.int64).astype(dtype))
    if dtype.kind == "b":
        return jnp.asarray(raw % np.uint64(2) == 1)
    unit = (raw >> np.uint64(11)) * 2.0**-53  # [0, 1), in 53 bits
    return jnp.asarray(((2 * unit - 1) * 3**0.5).astype(dtype))


def sample(output: Any) -> list[Any]:
    """Of each output at most ``SAMPLES`` entries, spread evenly."""
    found = []
    for x in jax.tree.leaves(output):
        if jnp.issubdtype(x.dtype, jax.dtypes.prng_key):
            x = jax.random.key_data(x)
        x = np.asarray(x).reshape(-1)
        places = np.linspace(0, x.size - 1, min(x.size, SAMPLES))
        found.append(x[places.astype(np.int64)])
    return found


def check(
    call: str,
    wanted: Sequence[Any],
    found: Sequence[Any],
    tolerance: float | None = None,
) -> Certificate:
    """How far outputs are apart, of which floating ones are held.

    Args:
      call: How the caller is named in errors.
      wanted: Samples of outputs.
      found: Those that are held against them.
      tolerance: What passes, as a fraction of the largest output; None: the root
        of the precision.

    Raises:
      ValueError: They are further apart.
    """
    error, scale = 0.0, 0.0
    for i, (a, b) in enumerate(zip(wanted, found, strict=True)):
        apart, largest = _difference(a, b)
        error, scale = max(error, apart), max(scale, largest)
        if not jnp.issubdtype(a.dtype, jnp.inexact):
            continue
        slack = tolerance or float(jnp.finfo(a.dtype).eps) ** 0.5
        if apart > slack * max(largest, 1e-30):
            raise ValueError(
                f"`{call}`: output {i} differs by {apart:.3g} from what it has "
                f"to be, up to {largest:.3g}; {slack:.3g} of that pass."
            )
    return Certificate(error, scale, 1)


def _difference(a: np.ndarray, b: np.ndarray) -> tuple[float, float]:
    """The largest one, inf if NaN or inf are elsewhere; and the largest number."""
    kind = np.complex128 if np.iscomplexobj(a) else np.float64
    a, b = a.astype(kind), b.astype(kind)
    finite = np.isfinite(a) & np.isfinite(b)
    alike = finite | (a == b) | (np.isnan(a) & np.isnan(b))
    largest = float(np.abs(a[finite]).max(initial=0))
    if not alike.all():
        return float("inf"), largest
    with np.errstate(over="ignore"):
        return float(np.abs(a[finite] - b[finite]).max(initial=0)), largest
