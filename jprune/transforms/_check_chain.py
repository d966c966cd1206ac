"""A trial run of an optimizer that prunes."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from jprune._core.checks import LATE, check_every
from jprune._core.describe import describe
from jprune._core.layout import laid_out_like
from jprune._core.trees import (
    is_floating,
    is_hole,
    is_nonzero,
    leaves_with_path,
    path_name,
    unique_names,
)
from jprune._core.typing import Masks, Tree
from jprune.masks import get_masks, has_masks


class ChainReport(NamedTuple):
    """What :func:`check_chain` found; prints as sentences."""

    moved: bool  # whether any parameter changed, without which nothing is known
    pruned: int  # weights that the masks prune
    revived: dict[str, int]  # leaf -> pruned weights that are not 0
    followers: tuple[str, ...]  # states of links after jprune's in its chain
    around: tuple[str, ...]  # states of wrappers around jprune's chain
    non_finite: tuple[str, ...]  # parameters with NaN or infinite values

    @property
    def zeros_persist(self) -> bool:
        """Whether every pruned weight was exactly 0 after every update."""
        return self.moved and self.pruned > 0 and not self.revived

    def __str__(self) -> str:
        lines = []
        if not self.moved:
            lines.append(
                "Nothing is known: no parameter moved. If updates are "
                "accumulated, ask for more `steps`."
            )
        elif not self.pruned:
            lines.append("Nothing is known: the masks prune no weight.")
        elif self.revived:
            names = ", ".join(f"{n} in {k}" for k, n in self.revived.items())
            lines.append(
                f"Zeros do NOT persist: pruned weights return ({names})."
            )
        else:
            lines.append(
                f"Zeros persist: {self.pruned:,} pruned weights are exactly 0."
            )
        if self.followers:
            lines.append(
                f"After jprune in its chain come {', '.join(self.followers)}: "
                "they change the update that jprune made."
            )
        else:
            lines.append("jprune is the last link of its chain.")
        if self.around:
            lines.append(f"Around its chain are {', '.join(self.around)}.")
        if self.followers or self.revived:
            lines.append(
                "The right order: optax.chain(<all that touches the update or "
                "the parameters>, <jprune, last>); rewire goes around all."
            )
        if self.non_finite:
            lines.append(
                f"Not finite: {', '.join(self.non_finite)}. Pruned NaN and "
                "infinite values stay: clear them with jprune.apply_masks."
            )
        return "\n".join(lines)


def check_chain(
    tx: optax.GradientTransformation,
    params: Tree,
    *,
    steps: int = 8,
    **extra_args: Any,
) -> ChainReport:
    """Checks that pruned weights stay exactly zero in an optimizer.

    It runs a few updates with random gradients, from parameters without zeros.
    It tests the end of schedules: the counts in jprune's states start at 2**24,
    and masks that prune nothing yet start with every other weight pruned.

    Args:
      tx: The whole optimizer, as in training.
      params: Its parameters; shapes, dtypes and non-finite values matter.
      steps: Number of updates; more than ``MultiSteps`` accumulates.
      **extra_args: What ``tx.update`` needs besides gradients and parameters.

    Returns:
      A :class:`ChainReport`, which prints as sentences.

    Raises:
      ValueError: ``tx`` is not an optimizer, or contains no transform that
        prunes; ``steps`` is not an integer >= 1.

    >>> import jax.numpy as jnp, optax, jprune
    >>> params = {"kernel": jnp.ones((4, 4))}
    >>> wrong = optax.chain(jprune.prune(.5), optax.adam(1e-3))
    >>> jprune.check_chain(wrong, params).zeros_persist
    False
    >>> right = optax.chain(optax.adam(1e-3), jprune.prune(.5))
    >>> print(jprune.check_chain(right, params))
    Zeros persist: 8 pruned weights are exactly 0.
    jprune is the last link of its chain.
    """
    if not all(callable(getattr(tx, x, None)) for x in ("init", "update")):
        raise ValueError(
            f"`check_chain(tx, ...)` must be a gradient transformation, "
            f"got {describe(tx)}."
        )
    steps = check_every("check_chain", steps, "steps")
    tx = optax.with_extra_args_support(tx)
    key = jax.random.key(0)
    non_finite = tuple(
        path_name(path)
        for path, p in leaves_with_path(params)
        if is_floating(p) and not bool(jnp.all(jnp.isfinite(p)))
    )
    params = _filled(key, params)
    state = _late(tx.init(params))
    if not any(map(has_masks, jax.tree.leaves(state, is_leaf=has_masks))):
        raise ValueError(
            "`check_chain(tx, ...)` found no pruner (`keep_masks`, `prune`, "
            f"`rewire`) among {', '.join(_names([state]))}."
        )
    followers, around = _neighbours(state)
    revived: dict[str, int] = {}
    pruned, moved = 0, False

    @jax.jit
    def step(params: Tree, state: Any, key: jax.Array) -> tuple[Tree, Any]:
        zeros = jax.tree.map(jnp.zeros_like, _trained(params))
        grads = _filled(key, zeros)
        updates, state = tx.update(grads, state, params, **extra_args)
        return optax.apply_updates(params, updates), state

    for i in range(steps):
        landed, state = step(params, state, jax.random.fold_in(key, i))
        moved |= any(
            bool(jnp.any(old != new))
            for old, new in zip(
                jax.tree.leaves(params), jax.tree.leaves(landed), strict=True
            )
        )
        params = landed
        if moved:
            masks = get_masks(state)
            pruned = sum(int(jnp.sum(~mask)) for mask in jax.tree.leaves(masks))
            for name, n in _back(masks, params).items():
                revived[name] = max(revived.get(name, 0), n)
    return ChainReport(
        moved=moved,
        pruned=pruned,
        revived={name: n for name, n in revived.items() if n},
        followers=followers,
        around=around,
        non_finite=non_finite,
    )


def _trained(params: Tree) -> Tree:
    """What gradients are taken of."""
    ahead = isinstance(params, optax.LookaheadParams)
    return params.fast if ahead else params


def _back(masks: Masks, params: Tree) -> dict[str, int]:
    """How many pruned weights of each leaf are not 0."""
    leaves = leaves_with_path(masks)
    names = unique_names([path for path, _ in leaves])
    found = dict(leaves_with_path(params) + leaves_with_path(_trained(params)))
    return {
        name: int(jnp.sum(~mask & is_nonzero(found[path])))
        for name, (path, mask) in zip(names, leaves, strict=True)
        if path in found and not is_hole(mask)
    }


def _filled(key: jax.Array, tree: Tree) -> Tree:
    """Random numbers in place of zeros and of what is not finite."""
    leaves, structure = jax.tree.flatten(tree)
    for i, x in enumerate(leaves):
        if is_floating(x):
            x = jnp.asarray(x)
            drawn = jax.random.normal(jax.random.fold_in(key, i), x.shape)
            use = jnp.isfinite(x) & (x != 0)
            drawn = laid_out_like(x, drawn.astype(x.dtype))
            leaves[i] = jnp.where(use, x, drawn)
    return jax.tree.unflatten(structure, leaves)


def _late(state: Any) -> Any:
    """The state as it is late in training."""

    def halve(mask: jax.Array) -> jax.Array:
        other = jnp.arange(mask.size).reshape(mask.shape) % 2 == 0
        other = laid_out_like(mask, other)
        return jnp.where(jnp.all(mask), mask & other, mask)

    def node(x: Any) -> Any:
        if not has_masks(x):
            return x
        if "count" in x._fields:
            x = x._replace(count=jnp.full_like(x.count, LATE))
        return x._replace(masks=jax.tree.map(halve, x.masks))

    return jax.tree.map(node, state, is_leaf=has_masks)


def _neighbours(state: Any) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """Names of the states after the last pruner of a chain, and around it."""
    followers: dict[str, None] = {}
    around: dict[str, None] = {}

    def visit(node: Any) -> bool:
        if has_masks(node):
            return True
        if jax.tree_util.all_leaves([node]):
            return False
        parts = jax.tree.leaves(node, is_leaf=lambda x: x is not node)
        found = [visit(part) for part in parts]
        if not any(found):
            return False
        if type(node) is tuple:  # the state of a chain
            last = len(found) - found[::-1].index(True)
            followers.update(dict.fromkeys(_names(parts[last:])))
        elif hasattr(node, "_fields"):
            around[type(node).__name__] = None
        return True

    visit(state)
    return tuple(followers), tuple(around)


def _names(states: Any) -> list[str]:
    """The types of some states; of a chain, those of its links."""
    return [
        name
        for state in states
        for name in (
            _names(state) if type(state) is tuple else [type(state).__name__]
        )
    ]
