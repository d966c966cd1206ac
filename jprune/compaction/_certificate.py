"""Two models side by side: how far their outputs are apart."""

from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jprune._core.hosts import check_here
from jprune._core.programs import check_call, check_values
from jprune._core.trees import path_name
from jprune._core.typing import KeyPath, Tree

Outputs = dict[KeyPath, np.ndarray]


class Certificate(NamedTuple):
    """The largest difference that :meth:`Compact.certify` or :func:`compare` found."""

    # Largest absolute difference of any output; inf where it has no value: one
    # of the models gave NaN or inf.
    error: float
    scale: float  # largest absolute output of the first (or masked) model
    cases: int  # how many inputs were compared
    skipped: int = 0  # random inputs on which the first model is not finite

    def __str__(self) -> str:
        skipped = f", {self.skipped} skipped as not finite" * bool(self.skipped)
        return (
            f"largest error {self.error:.3g} of outputs up to {self.scale:.3g}, "
            f"{self.cases} inputs{skipped}"
        )


def compare(
    fn_a: Any,
    params_a: Tree,
    fn_b: Any,
    params_b: Tree,
    *args: Any,
    seeds: int = 3,
) -> Certificate:
    """Measures the largest difference between the outputs of two models.

    It takes any two models, for example the compact one and a module rebuilt with
    the smaller sizes. :meth:`Compact.certify` does the same for the masked and the
    compact model.

    Args:
      fn_a: A function of parameters and arrays.
      params_a: Its parameters, concrete.
      fn_b: Another function.
      params_b: Its parameters, concrete.
      *args: Further arguments of both, concrete.
      seeds: How many random inputs are tried after ``args``, with the same shapes:
        normal for floats, in the range of ``args`` for integers.

    Returns:
      A :class:`Certificate` with the largest difference. The error is inf if either
      model gives NaN or inf on ``args``, or if the second does on a random input
      where the first does not. Random inputs on which the first model is not finite
      are counted as ``skipped``.

    Raises:
      ValueError: Outputs differ in structure or shape (the place is named), or a
        parameter or argument has no values.

    >>> import jax, jax.numpy as jnp, jprune
    >>> def fn(params, x):
    ...     h = jax.nn.relu(x @ params["w"])
    ...     return h @ params["v"] / h.shape[-1] ** .5
    >>> params = {"w": jnp.ones((4, 8)), "v": jnp.ones((8, 3))}
    >>> x, masks = jnp.ones((1, 4)), {"v": jnp.arange(8)[:, None] > 5}
    >>> small = jprune.compact(fn, params, x, masks=masks)
    >>> certificate = jprune.compare(fn, small.params, small.fn, small.params, x)
    >>> certificate.error > 1  # the root of 2 is not that of 8
    True
    """
    call = "compare(fn_a, params_a, fn_b, params_b, *args)"
    for fn, params in ((fn_a, params_a), (fn_b, params_b)):
        check_call("compare", fn, params, args, concrete=True)
        check_here("compare", params, args)
    a, b = jax.jit(fn_a), jax.jit(fn_b)
    return measure(
        call,
        lambda *x: a(params_a, *x),
        lambda *x: b(params_b, *x),
        args,
        seeds,
    )


def measure(
    call: str,
    first: Callable[..., Any],
    second: Callable[..., Any],
    args: tuple[Any, ...],
    seeds: int,
) -> Certificate:
    """The certificate of two functions of ``args``, on behalf of ``call``."""
    check_values(call, args)
    error, scale, skipped = 0.0, 0.0, 0
    for seed in (None, *range(seeds)):
        case = args if seed is None else _random_like(args, seed)
        wanted = _outputs(first(*case))
        if seed is not None and not all(map(_is_finite, wanted.values())):
            skipped += 1
            continue
        for a, b in _pairs(call, wanted, _outputs(second(*case))):
            error = max(error, _difference(a, b))
            scale = max(scale, _largest(a[np.isfinite(a)]))
    return Certificate(error, scale, 1 + seeds - skipped, skipped)


def _outputs(tree: Any) -> Outputs:
    """Outputs by their places, in the widest numbers of their kind."""
    found = {}
    for path, x in jax.tree_util.tree_flatten_with_path(tree)[0]:
        if jnp.issubdtype(x.dtype, jax.dtypes.extended):
            x = jax.random.key_data(x)
        kind = jnp.issubdtype(x.dtype, jnp.complexfloating)
        wide = np.complex128 if kind else np.float64
        found[path] = np.asarray(x).astype(wide)
    return found


def _pairs(
    call: str, a: Outputs, b: Outputs
) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """The outputs of both models, refused if they don't go together."""
    for one, mine, other in (("first", a, b), ("second", b, a)):
        for path in mine:
            if path not in other:
                names = ", ".join(map(path_name, other))
                raise ValueError(
                    f"`{call}`: only the {one} model has the output "
                    f"{path_name(path)!r}; the other has: {names or 'none'}."
                )
    for path, x in a.items():
        if x.shape != b[path].shape:
            raise ValueError(
                f"`{call}`: the output {path_name(path)!r} has shape {x.shape} "
                f"in the first model and {b[path].shape} in the second."
            )
        yield x, b[path]


def _is_finite(x: np.ndarray) -> bool:
    return bool(np.isfinite(x).all())


def _largest(x: np.ndarray) -> float:
    return float(np.abs(x).max(initial=0))


def _difference(a: np.ndarray, b: np.ndarray) -> float:
    """The largest difference; inf where there is none to be had."""
    if not _is_finite(a) or not _is_finite(b):
        return float("inf")
    with np.errstate(over="ignore"):
        return _largest(a - b)


def _random_like(args: Any, seed: int) -> Any:
    """Other values of the same shapes and types."""
    rng = np.random.default_rng(seed)

    def leaf(x: Any) -> Any:
        dtype = jnp.result_type(x) if hasattr(x, "dtype") else None
        if dtype is None or jnp.issubdtype(dtype, jax.dtypes.extended):
            return x
        shape = np.shape(x)
        if jnp.issubdtype(dtype, jnp.floating):
            return jnp.asarray(rng.standard_normal(shape), dtype)
        if jnp.issubdtype(dtype, jnp.integer) and np.size(x):
            low, high = int(np.min(x)), int(np.max(x))
            return jnp.asarray(rng.integers(low, high + 1, shape), dtype)
        return x

    return jax.tree.map(leaf, args)
