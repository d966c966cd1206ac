"""Dynamic sparse training: sparse from the first step to the last."""

from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jax import lax

from jprune._checks import (
    check_every,
    check_fixed,
    check_params,
    check_sparsity,
    check_state,
    check_where,
    choose,
    prunable,
)
from jprune._find import Method, check_method, counts_of, find, kept_units
from jprune._trees import is_hole
from jprune._typing import Masks, Scalar, Sparsity, Tree, Where
from jprune.allocations import Allocation, uniform
from jprune.criteria import Criterion, gradient, magnitude, random
from jprune.structures import Structure, unstructured
from jprune.transforms._keep_masks import mask_updates
from jprune.transforms._prune import key_maker
from jprune.transforms._slots import find_slots, reset_slots


class RewireState(NamedTuple):
    """The state of :func:`rewire`."""

    count: jax.Array  # type: ignore[assignment]  # int32 scalar, updates so far
    masks: Masks  # bool, like the parameters
    grow: Any  # the grow criterion's own
    drop: Any  # the drop criterion's own
    inner: Any  # the inner optimizer's


def rewire(
    inner: optax.GradientTransformation,
    sparsity: Scalar,
    *,
    grow: Criterion,
    drop: Criterion = magnitude(),
    fraction: Sparsity | None = None,
    every: int = 100,
    start: int = 0,
    stop: int | None = None,
    replace_step: bool = False,
    structure: Structure = unstructured(),
    allocation: Allocation = uniform(),
    where: Where = None,
    key: int | jax.Array = 0,
) -> optax.GradientTransformationExtraArgs:
    """Trains a network that is sparse from the first step, and rewires it.

    The first masks are drawn at random. At update counts ``start, start + every,
    ...`` up to ``stop`` a fraction of the kept units is dropped, those of the
    lowest ``drop`` score, and as many grow, those of the highest ``grow`` score
    of all that are then pruned; so the best of the dropped may stay. The number
    of kept units never changes.

    The inner optimizer sees no gradient and no value of a pruned weight. A new
    connection starts at zero, and its moments are what ``inner.init`` gives; of
    a dropped one nothing is left behind. That holds for *slots of weights*:
    arrays in the inner state that have the shape of their parameter, perhaps
    with more axes in front. Statistics of many weights (Adafactor's factors,
    a norm per layer) stay as they are.

    Args:
      inner: The optimizer, whole: what comes after it in a chain would revive
        pruned weights.
      sparsity: The fraction of units that is pruned, in [0, 1]: a number or a
        traced scalar.
      grow: What new connections are worth. It sees the dense gradients, as they
        arrive here.
      drop: What kept connections are worth.
      fraction: The fraction of a pool's kept units that is dropped, in [0, 1]: a
        number, a traced scalar, or an optax schedule of the update count. Where
        it is 0 nothing is rewired. Default: a cosine from .3 to 0 at ``stop``.
      every: Updates between rewirings, at least 1.
      start: The count of the first rewiring.
      stop: The count after which masks stay; None: they never do.
      replace_step: Whether a rewiring takes the place of a step of the inner
        optimizer, as published, and counts as none. Else it follows the step.
      structure: In what shape; see :mod:`jprune.structures`.
      allocation: How much where; see :mod:`jprune.allocations`.
      where: Which leaves, as in :func:`jprune.find_masks`.
      key: Seed or key of the first masks and of criteria that draw at random;
        for these it is folded with the update count.

    Returns:
      An optimizer. Its state is a :class:`RewireState`; ``update`` needs
      ``params``, and hands extra arguments on to ``inner``. The parameters are
      sparse from the first update on; ``apply_masks(params, get_masks(state))``
      makes them so before.

    Raises:
      ValueError: Here for a bad number or an uncalled factory; in ``init`` for
        what depends on the parameters, and for an inner optimizer with a slot
        whose entries can't be told apart (the slot is named); in ``update`` if
        ``params`` is missing.

    Cost: between rewirings one fused pass over parameters, gradients and slots.

    References:
      Mocanu et al., `Scalable training of artificial neural networks with
      adaptive sparse connectivity <https://arxiv.org/abs/1707.04780>`_, 2018;
      Evci et al., `Rigging the Lottery <https://arxiv.org/abs/1911.11134>`_,
      2020, algorithm 1.

    >>> import jax.numpy as jnp, optax, jprune
    >>> from jprune.criteria import random
    >>> tx = jprune.rewire(optax.adam(.1), .75, grow=random(), fraction=.5, every=1)
    >>> params = jnp.ones((4, 4))
    >>> state = tx.init(params)
    >>> updates, after = tx.update(params, state, params)
    >>> int(jnp.sum(after.masks)), int(jnp.sum(after.masks & ~state.masks))
    (4, 2)
    """
    return _rewire(
        "rewire",
        inner,
        sparsity,
        grow=grow,
        drop=drop,
        fraction=fraction,
        every=every,
        start=start,
        stop=stop,
        replace_step=replace_step,
        structure=structure,
        allocation=allocation,
        where=where,
        key=key,
    )
