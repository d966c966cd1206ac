"""A smaller model learns what the dense one says."""

from collections.abc import Callable, Iterable
from typing import Any

import jax
import optax

from jprune._core.checks import check_integer
from jprune._core.describe import describe
from jprune._core.hosts import check_together
from jprune._core.programs import bound, check_call
from jprune._core.progress import bar
from jprune._core.trees import (
    is_floating,
    is_hole,
    leaves_with_path,
    path_name,
    rebuild,
)
from jprune._core.typing import Masks, Tree
from jprune.calibration.calibrate import arguments, read_batches, reading
from jprune.search.distances import distance_of
from jprune.transforms import keep_masks

STATISTICS = ("mean", "var")  # names of leaves that no gradient trains


def distill(
    fn: Any,
    params: Tree,
    batches: Iterable[Any],
    optimizer: optax.GradientTransformation,
    steps: int,
    *,
    distance: Callable[[Any, Any], Any] | None = None,
    **static: Any,
) -> Callable[[Any, Tree, Masks | None], Tree]:
    """Makes a function that fine-tunes a model on the dense model's outputs.

    No labels are needed. Pass the function to ``compress(..., finetune=...)``, or call it
    for any smaller model: ``params = finetune(small.fn, small.params, None)``.

    Args:
      fn: The dense model: any function of parameters and arrays.
      params: Its parameters, which do not change.
      batches: An iterable of batches, each the tuple of further arguments or the only
        one. All are held at once, and used in turn. The dense model's outputs are
        computed once.
      optimizer: Any optax optimizer. Its schedules count steps.
      steps: Number of steps, each on one batch. Static.
      distance: ``(dense outputs, outputs) -> scalar``, the loss. Default as in
        :func:`jprune.search.sensitivity`.
      **static: Further keyword arguments of ``fn``, fixed; no arrays.

    Returns:
      ``finetune(fn, params, masks) -> params``; with masks, pruned weights stay 0. It
      trains all floating parameters except those called ``mean`` or ``var``, the
      statistics of norms.

    Raises:
      ValueError: There is no batch, or ``steps`` is not a positive integer.
      TypeError: ``fn`` does not take the entries of a batch.

    References:
      Hinton et al., `Distilling the Knowledge in a Neural Network
      <https://arxiv.org/abs/1503.02531>`_, 2015, at a temperature of 1.

    >>> import jax, jax.numpy as jnp, jprune, optax
    >>> def fn(w, x):
    ...     return x @ w
    >>> w, x = jnp.eye(2), jax.random.normal(jax.random.key(0), (64, 2))
    >>> finetune = jprune.distill(fn, w, [x], optax.adam(.1), 100,
    ...                           distance=jprune.search.squared_error)
    >>> finetune(fn, jnp.array([[.5, .2], [.1, 2.]]), None).round(1) + 0.
    Array([[1., 0.],
           [0., 1.]], dtype=float32)
    """
    call = "distill"
    steps = check_integer(f"`{call}(steps)`", steps, 1, static=True)
    fn = bound(call, fn, static)
    check_call(call, fn, params, (), concrete=True)
    if not (hasattr(optimizer, "init") and hasattr(optimizer, "update")):
        raise ValueError(
            f"`{call}(optimizer=...)` must be a gradient transformation of optax, "
            f"got {describe(optimizer)}."
        )
    read = [arguments(batch) for batch in read_batches(call, batches)]
    if not read:
        raise ValueError(f"`{call}(batches=...)` is empty: nothing was read.")
    for number, args in enumerate(read):
        check_together(call, number, params, args)
    teach = jax.jit(fn)
    with reading(call, read[0]):
        said = [teach(params, *args) for args in read]
    apart = distance_of(said[0]) if distance is None else distance
    found = jax.eval_shape(apart, said[0], said[0])
    if getattr(found, "shape", None) != ():
        raise ValueError(
            f"`{call}(distance=...)` must return a scalar, got {describe(found)}."
        )

    def finetune(small: Any, start: Tree, masks: Masks | None) -> Tree:
        tx = optimizer
        if masks is not None:
            tx = optax.chain(optimizer, keep_masks(masks))

        @jax.jit
        def step(params: Tree, state: Any, args: Any, wanted: Any) -> Any:
            def lost(trained: Tree) -> Any:
                return apart(wanted, small(_joined(params, trained), *args))

            trained = _trained(params)
            updates, state = tx.update(jax.grad(lost)(trained), state, trained)
            return _joined(params, optax.apply_updates(trained, updates)), state

        new, state = start, tx.init(_trained(start))
        with bar(call, steps) as shown:
            for number in range(steps):
                at = number % len(read)
                new, state = step(new, state, read[at], said[at])
                shown.update()
        return new

    return finetune


def _trained(params: Tree) -> Tree:
    """The parameters that are trained, holes elsewhere."""
    return rebuild(
        params,
        [
            x if _learns(path, x) else optax.MaskedNode()
            for path, x in leaves_with_path(params)
        ],
    )


def _learns(path: Any, x: Any) -> bool:
    name = path_name(path[-1:]) if path else ""
    return not is_hole(x) and is_floating(x) and name not in STATISTICS


def _joined(params: Tree, trained: Tree) -> Tree:
    """All parameters, with those that were trained."""
    pairs = zip(
        leaves_with_path(params), leaves_with_path(trained), strict=True
    )
    return rebuild(
        params, [x if is_hole(new) else new for (_, x), (_, new) in pairs]
    )
