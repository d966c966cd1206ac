"""Criteria: what matters. Higher scores are kept."""

import inspect
from collections.abc import Callable
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp

from jprune._calls import recorded, short, show
from jprune._describe import describe
from jprune._paths import like
from jprune._trees import is_floating, wide, wide_dtype
from jprune._typing import Tree

__all__ = [
    "Criterion",
    "custom",
    "fisher",
    "gradient",
    "magnitude",
    "movement",
    "random",
    "snip",
    "taylor",
]


class Criterion(NamedTuple):
    """How weights are scored.

    Trees are like the parameters, with ``optax.MaskedNode`` where nothing is
    pruned; ``grads`` and ``key`` may be None.
    """

    init: Callable[[Tree], Any]  # params -> state
    update: Callable[[Tree, Any, Tree], Any]  # grads, state, params -> state
    score: Callable[..., Tree]  # params, state, grads, key -> scores
    # Scores of units, as a structure pools them -> those that are ranked; None:
    # as they are.
    pooled: Callable[[Tree], Tree] | None = None
    # Whether gradients are read; others' `grad=` is of no concern if not.
    reads_grads: bool = True
    # Whether the signs of scores count, also where a structure pools by a norm:
    # then by that of the positive ones less that of the negative ones.
    signed: bool = False

    def __repr__(self) -> str:
        return show(self)


def _stateless(score: Callable[..., Tree], reads_grads: bool) -> Criterion:
    """A criterion that remembers nothing."""
    return Criterion(
        init=lambda params: (),
        update=lambda grads, state, params: (),
        score=score,
        reads_grads=reads_grads,
    )


def _required(call: str, params: Tree, grads: Tree | None) -> Tree:
    """Refuses missing gradients."""
    if grads is None and not jax.tree.leaves(params):
        return params  # a part of `optax.partition` that got nothing
    if grads is None:
        raise ValueError(
            f"`{call}` needs gradients: `find_masks(..., grads=grads)`, or in "
            "training `jprune.with_gradients(optax.chain(...))` or "
            "`tx.update(..., grad=grads)`; got None."
        )
    return grads


def _product(w: Any, g: Any) -> jax.Array:
    """``w * g`` in float32 at least."""
    dtype = wide_dtype(*map(jnp.result_type, (w, g)))
    return jnp.asarray(w, dtype) * jnp.asarray(g, dtype)


@recorded
def magnitude() -> Criterion:
    r"""Keeps the largest weights: the score is :math:`|w|`.

    Returns:
      A :class:`Criterion` without state; scores in float32 at least.

    References:
      Han et al., `Learning both Weights and Connections for Efficient Neural
      Networks <https://arxiv.org/abs/1506.02626>`_, 2015, section 3.

    >>> import jax.numpy as jnp, jprune
    >>> jprune.find_masks(jnp.array([[1., -4.], [3., -2.]]), .5,
    ...                   criterion=jprune.criteria.magnitude())
    Array([[False,  True],
           [ True, False]], dtype=bool)
    """

    def score(params: Tree, state: Any, grads: Any, key: Any) -> Tree:
        del state, grads, key  # the weights say it all
        return jax.tree.map(lambda p: jnp.abs(wide(p)), params)

    return _stateless(score, reads_grads=False)


@recorded
def random() -> Criterion:
    """Keeps weights at random: the baseline that every criterion must beat.

    Needs a key: ``find_masks(key=...)``, or the ``key`` of ``prune``, which is
    folded with the update count, so that a resumed run draws the same.

    Returns:
      A :class:`Criterion` without state; float32 scores, uniform in [0, 1), the
      same for any sharding.

    References:
      Liu et al., `The Unreasonable Effectiveness of Random Pruning
      <https://arxiv.org/abs/2202.02643>`_, 2022.

    >>> import jax, jax.numpy as jnp, jprune
    >>> masks = jprune.find_masks(jnp.ones((4, 4)), .5, key=jax.random.key(0),
    ...                           criterion=jprune.criteria.random())
    >>> int(masks.sum())
    8
    """

    def score(params: Tree, state: Any, grads: Any, key: Any) -> Tree:
        del state, grads  # only the shapes of the parameters count
        if key is None:
            raise ValueError(
                "`random()` needs a key: `find_masks(..., key=jax.random.key(0))`"
                ", got key=None."
            )
        leaves, structure = jax.tree.flatten(params)

        def drawn(i: int, leaf: Any) -> jax.Array:
            x = jax.random.uniform(jax.random.fold_in(key, i), jnp.shape(leaf))
            return jnp.zeros_like(leaf, x.dtype) + x  # laid out like the leaf

        scores = [drawn(i, leaf) for i, leaf in enumerate(leaves)]
        return jax.tree.unflatten(structure, scores)

    return _stateless(score, reads_grads=False)


@recorded
def gradient() -> Criterion:
    r"""Keeps the weights with the largest gradients: :math:`|g|`.

    Needs gradients: ``find_masks(grads=...)``, or
    :func:`jprune.with_gradients` around the chain.

    Returns:
      A :class:`Criterion` without state; scores in float32 at least.

    References:
      Evci et al., `Rigging the Lottery <https://arxiv.org/abs/1911.11134>`_,
      2020, section 3: the score by which weights are grown.

    >>> import jax.numpy as jnp, jprune
    >>> jprune.find_masks(jnp.ones((1, 3)), 1 / 3,
    ...                   grads=jnp.array([[2., -.1, -3.]]),
    ...                   criterion=jprune.criteria.gradient())
    Array([[ True, False,  True]], dtype=bool)
    """

    def score(params: Tree, state: Any, grads: Any, key: Any) -> Tree:
        del state, key  # the gradients say it all
        grads = _required("gradient()", params, grads)
        return jax.tree.map(lambda g: jnp.abs(wide(g)), grads)

    return _stateless(score, reads_grads=True)


@recorded
def taylor(
    form: Literal["absolute", "signed", "squared"] = "absolute",
) -> Criterion:
    r"""Keeps the weights whose loss, to first order, is felt most.

    Without the weights :math:`S` the loss changes by about
    :math:`-\sum_{i \in S} w_i g_i`. Needs gradients, as :func:`gradient`.

    Args:
      form: How the products :math:`w_i g_i` make the score of a weight, and of
        a unit whose weights a structure pools. Static.

        - ``"absolute"``: :math:`|w_i g_i|`, then pooled: products of either
          sign count as much. Pooled by L2, units rank by
          :math:`\sum_i (w_i g_i)^2` (Molchanov et al. 2019).
        - ``"signed"``: :math:`-w_i g_i`, then pooled: what helps by leaving
          goes first. Pooled by the mean, units rank by the change of the loss.
        - ``"squared"``: :math:`w_i g_i`, pooled, then squared. Pooled by the
          mean, units rank by :math:`(\sum_i w_i g_i)^2`: products of opposite
          sign cancel (the group form of Molchanov et al. 2019). The score is
          the magnitude, which has the order of the square.

        The last two are meant for structures that pool by the mean. A norm,
        their default, is that of the positive scores less that of the negative
        ones. Of single weights ``"squared"`` ranks as ``"absolute"`` does.

    Returns:
      A :class:`Criterion` without state; scores in float32 at least.

    Raises:
      ValueError: Another ``form``; when used, if gradients are missing.

    References:
      Molchanov et al., `Pruning Convolutional Neural Networks for Resource
      Efficient Inference <https://arxiv.org/abs/1611.06440>`_, 2017; Molchanov
      et al., `Importance Estimation for Neural Network Pruning
      <https://arxiv.org/abs/1906.10771>`_, 2019, section 3.

    >>> import jax.numpy as jnp, jprune
    >>> params, grads = jnp.array([[1., 2., 3.]]), jnp.array([[5., -4., 1.]])
    >>> def find(form):
    ...     return jprune.find_masks(params, 1 / 3, grads=grads,
    ...                              criterion=jprune.criteria.taylor(form))
    >>> find("absolute"), find("signed")
    (Array([[ True,  True, False]], dtype=bool), Array([[False,  True,  True]], dtype=bool))
    """
    forms: dict[str, Callable[[jax.Array], jax.Array]] = {
        "absolute": jnp.abs,
        "signed": jnp.negative,
        "squared": lambda x: x,
    }
    if form not in forms:
        raise ValueError(
            f"`taylor(form)` must be one of {', '.join(map(repr, forms))}, got "
            f"{form!r}."
        )

    def score(params: Tree, state: Any, grads: Any, key: Any) -> Tree:
        del state, key  # the products say it all
        grads = _required("taylor()", params, grads)
        return jax.tree.map(
            lambda w, g: forms[form](_product(w, g)), params, grads
        )

    criterion = _stateless(score, reads_grads=True)
    if form == "absolute":
        return criterion
    if form == "signed":
        return criterion._replace(signed=True)
    return criterion._replace(
        # Squares of what is below 1e-19 would not be floats.
        pooled=lambda units: jax.tree.map(jnp.abs, units),
        signed=True,
    )


def _accumulated(
    call: str, step: Callable[[jax.Array], jax.Array]
) -> Criterion:
    """Scores that grow by ``step(w * g)`` at every update."""

    def init(params: Tree) -> Tree:
        return jax.tree.map(lambda p: jnp.zeros_like(wide(p)), params)

    def update(grads: Tree | None, state: Tree, params: Tree) -> Tree:
        return jax.tree.map(
            lambda s, w, g: s + step(_product(w, g)).astype(s.dtype),
            state,
            params,
            _required(call, params, grads),
        )

    def score(params: Tree, state: Tree, grads: Any, key: Any) -> Tree:
        del params, grads, key  # the state says it all
        return state

    return Criterion(init, update, score)


@recorded
def movement() -> Criterion:
    r"""Keeps the weights that training moves away from zero.

    .. math::

      S_i = -\sum_t w_i^{(t)} g_i^{(t)}

    over all updates so far: positive where gradient descent makes
    :math:`|w_i|` grow. Made for fine-tuning. What is pruned is zero and moves no
    more: its score stays. Where a structure pools by a norm, its default, that of
    the negative scores is taken from that of the positive ones. Needs gradients,
    as :func:`gradient`.

    Returns:
      A :class:`Criterion`; its state are the sums, in float32 at least, like the
      parameters. Cost: one fused pass per update.

    References:
      Sanh et al., `Movement Pruning <https://arxiv.org/abs/2005.07683>`_, 2020,
      section 4.

    >>> import jax.numpy as jnp, optax, jprune
    >>> tx = jprune.with_gradients(optax.chain(
    ...     optax.sgd(.1), jprune.prune(.5, criterion=jprune.criteria.movement())))
    >>> params = jnp.array([[1., -4.]])
    >>> updates, state = tx.update(jnp.array([[-1., -1.]]), tx.init(params), params)
    >>> optax.apply_updates(params, updates)  # 1 grows, -4 shrinks
    Array([[1.1, 0. ]], dtype=float32)
    """
    criterion = _accumulated("movement()", jnp.negative)
    return criterion._replace(signed=True)


@recorded
def fisher() -> Criterion:
    r"""Keeps the weights to which the loss is most sensitive, to second order.

    .. math::

      S_i = \sum_t (w_i^{(t)} g_i^{(t)})^2

    over all updates so far. The mean of :math:`g^2` estimates the diagonal of
    the Fisher information, which near a minimum is that of the Hessian; half of
    it times :math:`w_i^2` is what the loss rises by without :math:`w_i`. Needs
    gradients, as :func:`gradient`; the smaller the batches, the better the
    estimate. Products below 1e-19 have squares that float32 takes for 0, so that
    their order is lost; :func:`taylor` keeps it.

    Returns:
      A :class:`Criterion`; its state are the sums, in float32 at least, like the
      parameters. Cost: one fused pass per update.

    References:
      Theis et al., `Faster gaze prediction with dense networks and Fisher
      pruning <https://arxiv.org/abs/1801.05787>`_, 2018, section 2; Singh and
      Alistarh, `WoodFisher <https://arxiv.org/abs/2004.14340>`_, 2020.

    >>> import jax.numpy as jnp, jprune
    >>> jprune.find_masks(jnp.array([[1., -4.]]), .5,
    ...                   grads=jnp.array([[6., 1.]]),
    ...                   criterion=jprune.criteria.fisher())
    Array([[ True, False]], dtype=bool)
    """
    return _accumulated("fisher()", jnp.square)


def snip(
    loss: Callable[[Tree, Any], jax.typing.ArrayLike], params: Tree, batch: Any
) -> Criterion:
    r"""Keeps the connections that matter before any training: :math:`|w g|`.

    The gradients :math:`g` are those of ``loss(params, batch)`` at these
    parameters; whatever gradients come later, the scores stay. The published
    method ranks all connections of the network together:
    ``allocation=global_ranking()``.

    Args:
      loss: ``(params, batch) -> scalar``, differentiable.
      params: The parameters at initialisation: the tree to be pruned, whole.
      batch: What ``loss`` needs beside them; the larger, the steadier.

    Returns:
      A :class:`Criterion`; its state are the scores, in float32 at least, like
      the parameters. It holds them, pickles with them and prints them; ``loss``,
      ``params`` and ``batch`` are needed no more.

    References:
      Lee et al., `SNIP: Single-shot Network Pruning based on Connection
      Sensitivity <https://arxiv.org/abs/1810.02340>`_, 2019, section 4.

    >>> import jax.numpy as jnp, jprune
    >>> def loss(w, x):
    ...     return jnp.sum((x @ w) ** 2)
    >>> w = jnp.array([[1.], [-2.]])
    >>> criterion = jprune.criteria.snip(loss, w, jnp.array([[3., 1.]]))
    >>> jprune.find_masks(w, .5, criterion=criterion)  # |w g| = 6 and 4
    Array([[ True],
           [False]], dtype=bool)
    """
    if not callable(loss):
        raise ValueError(
            "`snip(loss, params, batch)`: loss must be a function of params and "
            f"batch, got {describe(loss)}."
        )
    grads = jax.grad(loss, allow_int=True)(params, batch)
    scores = jax.tree.map(
        lambda w, g: jnp.abs(_product(w, g)) if is_floating(w) else None,
        params,
        grads,
    )
    return _snip(scores)


@recorded
def _snip(scores: Tree) -> Criterion:
    """Scores that stay, as a state."""

    def init(chosen: Tree) -> Tree:
        mine = like(chosen, scores, "`snip(loss, params, batch)`", "score")
        # A copy: the state may be donated, these scores must stay.
        return jax.tree.map(jnp.array, mine)

    return Criterion(
        init=init,
        update=lambda grads, state, params: state,
        score=lambda params, state, grads, key: state,
        reads_grads=False,
    )


@recorded
def custom(fn: Callable[..., Tree], *, grads: bool = False) -> Criterion:
    """Keeps what a function of yours scores highest.

    Args:
      fn: ``params -> scores``; with ``grads=True`` ``(params, grads) -> scores``.
        All are trees; leaves that are not pruned are ``optax.MaskedNode``.
        Scores are a floating tree like ``params``. If they have signs that
        matter, let the structure pool by ``"mean"`` or ``"max"``.
      grads: Whether ``fn`` gets gradients, which are then needed, as for
        :func:`gradient`.

    Returns:
      A :class:`Criterion` without state. For state, or a random key, write a
      :class:`Criterion`.

    Raises:
      ValueError: ``fn`` is no function of so many arguments; when used, if
        gradients are missing.

    >>> import jax, jax.numpy as jnp, jprune
    >>> def relative(params):
    ...     return jax.tree.map(lambda w: abs(w) / abs(w).max(), params)
    >>> masks = jprune.find_masks(
    ...     [jnp.array([[1., 2.]]), jnp.array([[30., 10.]])], .5,
    ...     criterion=jprune.criteria.custom(relative),
    ...     allocation=jprune.allocations.global_ranking())
    >>> [m.tolist() for m in masks]
    [[[False, True]], [[True, False]]]
    >>> def first_order(params, grads):
    ...     return jax.tree.map(lambda w, g: abs(w * g), params, grads)
    >>> jprune.find_masks(
    ...     jnp.array([[1., 2.]]), .5, grads=jnp.array([[3., 1.]]),
    ...     criterion=jprune.criteria.custom(first_order, grads=True))
    Array([[ True, False]], dtype=bool)
    """
    if not callable(fn):
        raise ValueError(
            f"`custom(fn)` must be a function of a tree to a tree, got "
            f"{describe(fn)}."
        )
    call = "custom(fn, grads=True)" if grads else "custom(fn)"
    if not _takes(fn, 1 + grads):
        wanted = "(params, grads)" if grads else "params"
        other = "custom(fn)" if grads else "custom(fn, grads=True)"
        hint = f"; `{other}` fits it" if _takes(fn, 2 - grads) else ""
        raise ValueError(
            f"`{call}` calls `fn` with {wanted}, which `{short(fn)}` does not "
            f"take: its arguments are {_arguments(fn)}{hint}."
        )
    takes_grads = grads

    def score(params: Tree, state: Any, grads: Any, key: Any) -> Tree:
        del state, key  # write a `Criterion` for more
        if takes_grads:
            return fn(params, _required(call, params, grads))
        return fn(params)

    return _stateless(score, reads_grads=takes_grads)


def _takes(fn: Callable[..., Any], number: int) -> bool:
    """Whether a function can be called with so many arguments."""
    try:
        inspect.signature(fn).bind(*[None] * number)
    except TypeError:
        return False
    except ValueError:  # some functions written in C have no signature
        pass
    return True


def _arguments(fn: Callable[..., Any]) -> inspect.Signature:
    """The signature without types."""
    parameters = inspect.signature(fn).parameters.values()
    return inspect.Signature(
        [p.replace(annotation=p.empty) for p in parameters]
    )
