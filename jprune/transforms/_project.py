"""Projected training: the parameters stay in a set."""

from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax import lax

from jprune import projections
from jprune._core.calls import recorded
from jprune._core.checks import (
    check_every,
    check_params,
    check_radius,
)
from jprune._core.describe import describe
from jprune._core.trees import at_least_float32, is_hole, path_name
from jprune._core.typing import Projection, Scalar, Tree, Where
from jprune._core.where import PROJECTED, check_where, choose
from jprune.transforms._keep_masks import check_update, update_dtype


class ProjectState(NamedTuple):
    """The state of :func:`project`."""

    count: jax.Array  # type: ignore[assignment]  # int32 scalar, updates so far


@recorded
def project(
    projection: Projection, *, where: Where = None, every: int = 1
) -> optax.GradientTransformationExtraArgs:
    r"""Projects the parameters after each update, with any optimizer.

    .. math::

      u' = P(p + u) - p

    Args:
      projection: :math:`P`, a function of a tree to a tree of the same shapes:
        from :mod:`jprune.projections`, ``optax.projections`` or your own. It
        gets the selected leaves (``optax.MaskedNode`` elsewhere) in float32 at
        least.
      where: Which leaves are projected, as in :func:`jprune.find_masks`. Default:
        all floating leaves, biases too, as in the formulas. A penalty is usually
        meant for kernels alone: ``where="kernel"``.
      every: Number of updates between projections, at least 1.

    Returns:
      A transform for the end of a chain. Its state is a :class:`ProjectState`.
      ``update`` needs ``params``. Entries that the projection does not change
      keep their update bit for bit.

    Raises:
      ValueError: Here for a bad number or a factory that was not called; in
        ``init`` for what depends on the parameters; in ``update`` if ``params``
        is missing.

    References:
      Goldstein, `Convex programming in Hilbert space
      <https://doi.org/10.1090/S0002-9904-1964-11178-2>`_, 1964.

    >>> import jax.numpy as jnp, optax, jprune
    >>> tx = optax.chain(optax.sgd(1.), jprune.project(
    ...     optax.projections.projection_non_negative))
    >>> params = jnp.array([1., 2.])
    >>> updates, state = tx.update(jnp.array([3., 1.]), tx.init(params), params)
    >>> optax.apply_updates(params, updates)
    Array([0., 1.], dtype=float32)
    """
    return _project("project", projection, where, every)


@recorded
def project_frobenius_ball(
    radius: Scalar,
    *,
    per: Literal["tree", "leaf"] = "tree",
    where: Where = None,
) -> optax.GradientTransformationExtraArgs:
    r"""Keeps :math:`\|W\|_F \le r` during training, with any optimizer.

    This is the constraint of problems 2 and 3 of automatic pruning and
    optimisation.

    Args:
      radius: :math:`r > 0`, a number or a traced scalar.
      per: Whether :math:`W` is the whole ``"tree"`` or each ``"leaf"``. Static.
      where: Which leaves are projected, as in :func:`project`.

    Returns:
      :func:`project` of :func:`jprune.projections.frobenius_ball`.

    Raises:
      ValueError: The radius is not positive or ``per`` is unknown; otherwise as
        :func:`project`.

    >>> import jax.numpy as jnp, optax, jprune
    >>> tx = optax.chain(optax.sgd(1.), jprune.project_frobenius_ball(1.))
    >>> params = jnp.array([.6, .8])
    >>> updates, state = tx.update(jnp.array([-2.4, -3.2]), tx.init(params), params)
    >>> optax.apply_updates(params, updates)
    Array([0.6, 0.8], dtype=float32)
    """
    call = "project_frobenius_ball"
    if per not in ("tree", "leaf"):
        raise ValueError(
            f"`{call}(per=...)` must be 'tree' or 'leaf', got {describe(per)}."
        )
    ball = projections.frobenius_ball(check_radius(call, radius))
    if per == "tree":
        return _project(call, ball, where, 1)
    return _project(call, lambda tree: jax.tree.map(ball, tree), where, 1)


def _project(
    call: str, projection: Projection, where: Where, every: Any
) -> optax.GradientTransformationExtraArgs:
    if not callable(projection):
        raise ValueError(
            f"`{call}(projection)` must be a function of a tree to a tree, got "
            f"{describe(projection)}."
        )
    for name in projections.__all__:
        if projection is getattr(projections, name):
            raise ValueError(
                f"`{call}(projection)` got the factory `{name}` itself; call "
                f"it: `{call}({name}(...))`."
            )
    check_where(call, where)
    every = check_every(call, every)

    def chosen(params: Tree) -> Tree:
        return choose(call, where, params, PROJECTED)

    def init_fn(params: Tree) -> ProjectState:
        points = jax.tree.map(at_least_float32, chosen(params))
        if jax.tree.leaves(points):
            _check_result(call, points, jax.eval_shape(projection, points))
        return ProjectState(count=jnp.zeros([], jnp.int32))

    @jax.jit
    def projected(updates: Tree, params: Tree) -> Tree:
        def point(path: Any, p: Any, u: Any) -> Any:
            if is_hole(p):
                return p
            check_update(call, path, u)
            dtype = update_dtype(at_least_float32(p), at_least_float32(u))
            return jnp.asarray(p, dtype) + jnp.asarray(u, dtype)

        points = jax.tree_util.tree_map_with_path(
            point, chosen(params), updates, is_leaf=is_hole
        )
        if not jax.tree.leaves(points):
            return updates
        landed = projection(points)
        _check_result(call, points, landed)

        def leaf(u: Any, p: Any, x: Any, y: Any) -> Any:
            if is_hole(x) or is_hole(u):
                return u
            dtype, y = update_dtype(u, p), jnp.asarray(y, x.dtype)
            moved = (y - jnp.asarray(p, x.dtype)).astype(dtype)
            return jnp.where(x == y, jnp.asarray(u, dtype), moved)

        return jax.tree.map(
            leaf, updates, params, points, landed, is_leaf=is_hole
        )

    @jax.jit
    def sometimes(updates: Tree, params: Tree, count: jax.Array) -> Tree:
        return lax.cond(
            count % every == 0,
            lambda: projected(updates, params),
            lambda: _same_dtypes(updates, params, chosen(params)),
        )

    def update_fn(
        updates: Tree,
        state: ProjectState,
        params: Tree | None = None,
        **extra_args: Any,
    ) -> tuple[Tree, ProjectState]:
        del extra_args  # for other links of the chain
        check_params(call, params)
        if isinstance(every, int) and every == 1:
            updates = projected(updates, params)
        else:
            updates = sometimes(updates, params, state.count)
        return updates, ProjectState(optax.safe_increment(state.count))

    return optax.GradientTransformationExtraArgs(init_fn, update_fn)


def _same_dtypes(updates: Tree, params: Tree, chosen: Tree) -> Tree:
    """The updates, in the dtypes that they have after a projection."""

    def leaf(u: Any, p: Any, pick: Any) -> Any:
        if is_hole(u) or is_hole(pick):
            return u
        return jnp.asarray(u, update_dtype(u, p))

    return jax.tree.map(leaf, updates, params, chosen, is_leaf=is_hole)


def _check_result(call: str, points: Tree, landed: Tree) -> None:
    """Refuses a projection that returns another structure or shape."""
    call = f"`{call}(projection)`"

    def check(path: Any, x: Any, y: Any) -> None:
        if np.shape(x) != np.shape(y):
            raise ValueError(
                f"{call} changed the shape of {path_name(path)!r} from "
                f"{np.shape(x)} to {np.shape(y)}."
            )

    try:
        jax.tree.map(lambda x, y: None, points, landed)
    except ValueError as error:
        raise ValueError(
            f"{call} must return a tree like its argument: {error}"
        ) from None
    jax.tree_util.tree_map_with_path(check, points, landed)
