"""How much outputs feel a weight, without labels."""

import math
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from jprune._core.calls import recorded
from jprune._core.checks import check_integer
from jprune._core.describe import describe
from jprune._core.ends import ends, partner
from jprune._core.hosts import check_together
from jprune._core.layout import laid_out_like
from jprune._core.members import Members, line_of
from jprune._core.programs import bound, check_call
from jprune._core.scales import sum_of_squares
from jprune._core.seeds import key_maker
from jprune._core.trees import (
    at_least_float32,
    concatenate_many,
    is_floating,
    is_hole,
    leaves_with_path,
    map_with_path,
    path_name,
    unique_names,
    wide_dtype,
)
from jprune._core.typing import Tree
from jprune.criteria._base import Criterion, product
from jprune.criteria._inputs import reads_of


def gauss_newton(
    fn: Callable[..., Any],
    params: Tree,
    batch: Any,
    *,
    samples: int = 16,
    key: Any = 0,
    **static: Any,
) -> Criterion:
    r"""Keeps the weights that change the outputs most, to first order; no labels.

    .. math::

      S_i = \Big(\frac1R \sum_{r=1}^R (w_i\, g_i^{(r)})^2\Big)^{1/2}, \qquad
      g^{(r)} = \nabla_w \langle v^{(r)}, f(w, x) \rangle

    Here :math:`v` are random signs, one for each entry of the outputs. The expected
    value of :math:`S_i^2` is :math:`w_i^2` times the diagonal of the Gauss-Newton
    matrix of squared errors, summed over the samples of the batch and the outputs.
    The signs are independent, so no gradient per sample is needed. With
    :func:`jprune.units` the products :math:`w g` of all weights that read a unit are
    summed before they are squared: this is the gradient with respect to a gate on
    the unit.

    Args:
      fn: Any differentiable function of parameters and arrays. Only its floating
        outputs count.
      params: Its parameters. They are matched with the pruned ones by the ends of
        their paths.
      batch: The tuple of further arguments; anything else is the only argument.
      samples: Number of draws of signs, :math:`R`; each is a backward pass. Static.
      key: A seed or a random key of any form.
      **static: Keyword arguments of ``fn``; no arrays.

    Returns:
      A :class:`Criterion`. Its state holds the scores at these parameters, in float32
      at least, and for units ``samples`` sums along each axis. The criterion stores
      them, also when it is pickled or printed; it no longer needs ``fn`` or ``batch``.

    Raises:
      ValueError: ``fn`` does not take these arguments or returns nothing floating,
        ``samples`` is not a positive integer, ``key`` is not a key, or a gradient is
        not finite; when used, if a selected parameter was not among ``params``.

    References:
      Dangel et al., `BackPACK <https://arxiv.org/abs/1912.10985>`_, 2020, section 2.3
      (Monte Carlo diagonals); Molchanov et al., `Importance Estimation for Neural
      Network Pruning <https://arxiv.org/abs/1906.10771>`_, 2019, section 3 (gates).

    >>> import jax.numpy as jnp, jprune
    >>> def fn(w, x):
    ...     return x @ w
    >>> w = jnp.array([[1.], [-2.]])
    >>> criterion = jprune.criteria.gauss_newton(fn, w, jnp.array([[3., 1.]]))
    >>> jprune.find_masks(w, .5, criterion=criterion)  # |w x| = 3 and 2
    Array([[ True],
           [False]], dtype=bool)
    """
    call = "gauss_newton"
    args = batch if isinstance(batch, tuple) else (batch,)
    check_call(call, fn, params, args, concrete=True)
    check_together(call, 0, params, args)
    fn = bound(call, fn, static)
    samples = check_integer(f"`{call}(samples=...)`", samples, 1, static=True)
    start = key_maker(call, key)()
    _check_outputs(call, fn, params, args)
    leaves, structure = jax.tree.flatten(params)
    chosen = [i for i, x in enumerate(leaves) if is_floating(x)]
    if not chosen:
        raise ValueError(
            f"`{call}(fn, params, batch)`: no parameter is floating, got "
            f"{describe(params)}."
        )

    @jax.jit
    def outputs(floating: list[Any], leaves: list[Any], args: Any) -> list[Any]:
        new = dict(zip(chosen, floating, strict=True))
        every = [new.get(i, x) for i, x in enumerate(leaves)]
        found = fn(jax.tree.unflatten(structure, every), *args)
        return [x for x in jax.tree.leaves(found) if is_floating(x)]

    @jax.jit
    def one(
        back: Any,
        found: list[jax.Array],
        floating: list[jax.Array],
        total: list[jax.Array],
        own: jax.Array,
    ) -> Any:
        (grads,) = back([_signs(own, i, x) for i, x in enumerate(found)])
        felt = [product(w, g) for w, g in zip(floating, grads, strict=True)]
        # A square of what is below 1e-19 would be no float.
        total = [jnp.hypot(s, x) for s, x in zip(total, felt, strict=True)]
        return total, list(map(_lines, felt))

    # One forward pass, and a loop here: in a loop of XLA's convolutions take 20
    # times as long on a CPU.
    floating = [jnp.asarray(leaves[i]) for i in chosen]
    found, back = jax.vjp(lambda w: outputs(w, leaves, args), floating)
    total = [jnp.zeros_like(at_least_float32(x)) for x in floating]
    sums = []
    for draw in range(samples):
        own = jax.random.fold_in(start, draw)
        total, lines = one(back, found, floating, total, own)
        sums.append(lines)
    scores = [x / math.sqrt(samples) for x in total]
    lines = [jnp.stack(x) for x in zip(*sums, strict=True)]
    wide = wide_dtype(*(x.dtype for x in lines))
    lines = [x.astype(wide) for x in lines]
    names = unique_names([path for path, _ in _leaves(params)])
    for i, score in zip(chosen, scores, strict=True):
        if not bool(jnp.isfinite(score).all()):
            raise ValueError(
                f"`{call}(fn, params, batch)`: the gradient with respect to "
                f"{names[i]!r} has NaN or inf."
            )
    return _gauss_newton([names[i] for i in chosen], scores, lines)


class State(NamedTuple):
    """What is remembered of the parameters."""

    scores: Tree  # float32 at least, like the parameters
    # [samples, n]: of each leaf in turn what `_lines` makes of `w * g`. One array,
    # which is like no parameter: what maps or cuts states by these leaves it.
    lines: jax.Array


@recorded
def _gauss_newton(
    names: list[str], scores: list[jax.Array], lines: list[jax.Array]
) -> Criterion:
    """Scores that stay, as a state."""
    call = "gauss_newton(fn, params, batch)"
    paths = ends(names)

    def own(path: Any, x: Any) -> int:
        i = partner(path, paths)
        if i is None or scores[i].shape != jnp.shape(x):
            had = "not" if i is None else f"of shape {scores[i].shape}"
            raise ValueError(
                f"`{call}`: {path_name(path)!r} of shape {jnp.shape(x)} was {had} "
                "among the floating parameters."
            )
        return i

    def init(params: Tree) -> State:
        mine = [own(path, x) for path, x in _leaves(params)]
        none = jnp.zeros_like(lines[0][:, :0])
        return State(
            # Copies: the state may be donated, these scores must stay.
            map_with_path(
                lambda path, x: jnp.array(scores[own(path, x)]), params
            ),
            concatenate_many([lines[i] for i in mine] or [none]) + 0,
        )

    def of_units(
        params: Tree, state: State, members: Members
    ) -> list[jax.Array]:
        leaves = _leaves(params)
        parts = _parts([jnp.shape(x) for _, x in leaves], state.lines)
        lines, numbers = [], []
        for i, axis, these in reads_of(
            call, members, params, lambda path: True
        ):
            line = parts[i][axis]
            if line.ndim < these.ndim:
                raise ValueError(
                    f"`{call}`: {path_name(leaves[i][0])!r} is a stack of vectors, "
                    "of which no sums are held; `units(graph, where=...)` can "
                    "leave these units out."
                )
            lines.append(jnp.sum(line, 1) if line.ndim > these.ndim else line)
            numbers.append(these)
        if not lines:  # a part of `optax.partition` that got nothing
            return members.add_up([])

        def summed(lines: list[jax.Array]) -> list[jax.Array]:
            return members.add_up(zip(numbers, lines, strict=True))

        return [_norm(x) for x in jax.vmap(summed)(lines)]

    return Criterion(
        init=init,
        update=lambda grads, state, params: state,
        score=lambda params, state, grads, key: state.scores,
        reads_grads=False,
        of_units=of_units,
    )


def _leaves(params: Tree) -> list[tuple[Any, Any]]:
    return [(path, x) for path, x in leaves_with_path(params) if not is_hole(x)]


def _kept(axis: int, ndim: int) -> tuple[int, ...]:
    """The axes of the sums along an axis: also axis 0 where it may be a stack."""
    return (0, axis) if axis and ndim > 2 else (axis,)


def _lines(x: jax.Array) -> jax.Array:
    """The sums along each axis, one behind the other."""
    lines = [jnp.zeros(0, x.dtype)]
    for axis in range(x.ndim):
        line = line_of(x, axis, len(_kept(axis, x.ndim)) > 1)
        lines.append(line.reshape(-1))
    return jnp.concatenate(lines)


def _parts(
    shapes: list[tuple[int, ...]], lines: jax.Array
) -> list[list[jax.Array]]:
    """By leaf and axis ``[samples, n]``, or ``[samples, n of axis 0, n]``."""
    found, start = [], 0
    for shape in shapes:
        mine = []
        for axis in range(len(shape)):
            sizes = [shape[k] for k in _kept(axis, len(shape))]
            stop = start + math.prod(sizes)
            mine.append(lines[:, start:stop].reshape(-1, *sizes))
            start = stop
        found.append(mine)
    return found


def _signs(key: jax.Array, i: int, like: jax.Array) -> jax.Array:
    key = jax.random.fold_in(key, i)
    signs = jax.random.rademacher(key, like.shape, like.dtype)
    return laid_out_like(like, signs)


def _norm(x: jax.Array) -> jax.Array:
    """The root of the mean of squares along axis 0."""
    squares, scale = sum_of_squares(x, (0,))
    return (jnp.sqrt(squares) / scale)[0] / math.sqrt(len(x))


def _check_outputs(call: str, fn: Any, params: Tree, args: Any) -> None:
    """Refuses what can't be called, or differentiated."""
    try:
        found = jax.eval_shape(fn, params, *args)
    except (TypeError, ValueError) as error:
        raise ValueError(
            f"`{call}(fn, params, batch)`: fn does not take these parameters with "
            f"{describe(args)}: {error}"
        ) from error
    if not any(is_floating(x) for x in jax.tree.leaves(found)):
        raise ValueError(
            f"`{call}(fn, params, batch)`: fn must return something floating, got "
            f"{describe(found)}."
        )
