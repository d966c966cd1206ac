"""Dead units removed from any function, and the proof that nothing changed."""

import math
from collections.abc import Iterable, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from functools import cached_property, partial
from importlib import import_module
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jprune._core.hosts import check_here
from jprune._core.programs import bound, check_call
from jprune._core.tables import shape_name, table
from jprune._core.trees import is_hole, leaves_with_path, path_name, rebuild
from jprune._core.typing import Masks, Tree
from jprune.compaction._certificate import Certificate, measure
from jprune.compaction.graph.constants import Array, Stored
from jprune.compaction.graph.pools import pools_of, traced
from jprune.compaction.graph.trace import Trace
from jprune.compaction.removal import axes as axes
from jprune.compaction.removal import control as control
from jprune.compaction.removal import conv as conv
from jprune.compaction.removal import moves as moves
from jprune.compaction.removal import reshape as reshape
from jprune.compaction.removal.dead_units import Dead, find_dead, left_over
from jprune.compaction.removal.frozen import frozen
from jprune.compaction.removal.plan import LeafPlan, Plan, cut, in_jax, kept_of
from jprune.compaction.removal.rewrite import (
    Rewrite,
    Small,
    Unsupported,
    dense,
    tidy,
)
from jprune.jaxprs.versions import abstract_array
from jprune.masks import align_masks, apply_masks


@dataclass(frozen=True, repr=False)
class Compact:
    """A smaller model that computes the same as the masked one: see :func:`compact`.

    It prints as a table of the leaves, before and after.
    """

    params: Tree  #: The same tree with smaller leaves.
    plan: Plan  #: What was kept, as plain data.
    _fn: Any
    _dense: Tree
    _masks: Masks

    @cached_property
    def fn(self) -> Any:
        """The jitted function of the smaller parameters, with the same signature.

        For new shapes of arguments it traces the dense function again, and checks
        again that the removed units add nothing.

        Raises:
          ValueError: Parameters don't have the smaller shapes, or for these shapes
            of arguments the dense function is a different program, in which the
            removed units would matter.
        """
        shapes = jax.tree.map(abstract_array, self._dense)
        return jax.jit(smaller(self._fn, shapes, self.plan))

    def take(self, tree: Tree) -> Tree:
        """Cuts optimizer states, averages and gradients, as :meth:`Plan.take`.

        NumPy arrays become JAX arrays, as the parameters do.
        """
        return jax.tree.map(in_jax, self.plan.take(tree))

    def certify(self, *args: Any, seeds: int = 3) -> Certificate:
        """Measures the largest difference from the masked model's outputs.

        Args:
          *args: Arguments of the function, concrete.
          seeds: How many random inputs are tried after ``args``, with the same
            shapes: normal for floats, in the range of ``args`` for integers.

        Returns:
          A :class:`Certificate` with the largest difference. The error is inf if
          either model gives NaN or inf on ``args``, or if the smaller one does on a
          random input where the masked one does not. Random inputs on which the
          masked model is not finite are counted as ``skipped``.

        Raises:
          ValueError: An argument has no values.
        """
        masked = jax.jit(self._fn)
        before = _masked(self._dense, self._masks)
        return measure(
            "certify(*args)",
            lambda *x: masked(before, *x),
            lambda *x: self.fn(self.params, *x),
            args,
            seeds,
        )

    def freeze(self, *args: Any) -> Any:
        """Makes a function for fixed shapes that no longer needs the dense model.

        Args:
          *args: Arguments of the function, arrays or shapes.

        Returns:
          A jitted function of the smaller parameters and arguments of these
          shapes. It does not hold the dense function, and does not trace it again
          as ``fn`` does for new shapes.

        Raises:
          ValueError: A size is a symbol (use :func:`jprune.export.save`), or removed
            units would add to a sum; when called, if shapes differ.
        """
        shapes = jax.tree.map(abstract_array, self._dense)
        fn = smaller(self._fn, shapes, self.plan)
        return frozen("small.freeze", fn, self.params, args)

    def save(
        self,
        path: Any,
        *args: Any,
        vjp: bool = False,
        platforms: Sequence[str] | None = None,
    ) -> None:
        """Writes the smaller model to files: see :func:`jprune.export.save`.

        It stores the plan too, and a certificate that is measured on these arguments,
        or on random ones if they have no values.

        Args:
          path: A folder, or a single file if it ends in ``.zip``.
          *args: Arguments of the function, arrays or shapes.
          vjp: Whether the derivative is stored too, so that training can go on.
          platforms: The platforms it will run on; None: that of this process.

        Raises:
          ValueError: As :func:`jprune.export.save` does.
          ImportError: A library is not installed.
        """
        # The room of files stands above this one, and is found by its name.
        bundle = import_module("jprune.export.bundle")
        bundle.save_compact(path, self, args, vjp=vjp, platforms=platforms)

    def __repr__(self) -> str:
        return f"Compact({_parameters(self.plan.leaves)} parameters)"

    def __str__(self) -> str:
        leaves = self.plan.leaves
        rows = [("leaf", "shape", "parameters")]
        rows += [
            (
                leaf.path,
                _change(shape_name(leaf.shape), shape_name(leaf.smaller)),
                _parameters([leaf]),
            )
            for leaf in leaves
        ]
        return table([*rows, ("total", "", _parameters(leaves))], left=2)


def _parameters(leaves: Sequence[LeafPlan]) -> str:
    """How many parameters there were, and are."""
    before = sum(math.prod(leaf.shape) for leaf in leaves)
    after = sum(math.prod(leaf.smaller) for leaf in leaves)
    return _change(f"{before:,}", f"{after:,}")


def _change(before: str, after: str) -> str:
    return before if before == after else f"{before} -> {after}"


def compact(
    fn: Any,
    params: Tree,
    *args: Any,
    masks: Masks | None = None,
    **static: Any,
) -> Compact:
    """Removes pruned units from a model, which then computes the same outputs.

    A unit is removed if it contributes zero to every sum for all inputs: its inputs
    or its outgoing weights are all zero. If its inputs are zero but its bias leaves a
    constant, this moves into the bias of the next layer, if there is one. Units that
    feed only removed units are removed too. Zeros count with or without masks.

    Args:
      fn: Any function of parameters and arrays, as for :func:`trace_units`.
      params: All parameters that may be sliced, concrete.
      *args: Further arguments, arrays or shapes.
      masks: Applied first, as by :func:`jprune.apply_masks`. They may cover a part of
        ``params``: masks of ``variables["params"]`` work for ``variables``.
      **static: Further keyword arguments of ``fn``, fixed, such as ``train=False``.
        The smaller ``fn`` takes none.

    Returns:
      A :class:`Compact`: smaller ``params``, a ``fn`` for them, the ``plan``, ``take``
      for trees that mirror the parameters, and ``certify``. ``plan.left`` lists zeros
      that could not be removed, and ``plan.sizes`` the new sizes of pools. NumPy
      parameters become JAX arrays, which are not copied at every call. Those of 64
      bits stay NumPy arrays without x64, because JAX would round them.

    Raises:
      ValueError: ``fn`` is not a function, a parameter or argument is not an array, a
        parameter has no values (under ``jit``), or a mask fits no parameter.

    The result equals the masked model up to rounding, for finite activations.

    >>> import jax, jax.numpy as jnp, jprune
    >>> def fn(params, x):
    ...     return jax.nn.relu(x @ params["w"] + params["b"]) @ params["v"]
    >>> params = {"w": jnp.ones((4, 8)), "b": jnp.ones(8), "v": jnp.ones((8, 3))}
    >>> masks = {"v": jnp.arange(8)[:, None] > 5}
    >>> small = jprune.compact(fn, params, jnp.ones((1, 4)), masks=masks)
    >>> jax.tree.map(jnp.shape, small.params)
    {'b': (2,), 'v': (2, 3), 'w': (4, 2)}
    >>> print(small)
    leaf   shape       parameters
    -----------------------------
    b      8 -> 2          8 -> 2
    v      8x3 -> 2x3     24 -> 6
    w      4x8 -> 4x2     32 -> 8
    -----------------------------
    total                64 -> 16
    >>> print(small.certify(jnp.ones((1, 4))))
    largest error 0 of outputs up to 10, 4 inputs
    """
    check_call("compact", fn, params, args, concrete=True)
    check_here("compact", params, masks, args)
    fn = bound("compact", fn, static)
    masks = None if masks is None else fitted(params, masks)
    trace = traced(fn, params, args)
    dead = find_dead(trace, host(params, masks))
    return compacted(trace, dead, fn, params, args, masks)[0]


def compacted(
    trace: Trace,
    dead: Dead,
    fn: Any,
    params: Tree,
    args: Any,
    masks: Masks | None,
) -> tuple[Compact, Trace]:
    """What :func:`compact` returns, and the trace of the smaller program."""

    def removed(gone: Array, changed: Iterable[int]) -> tuple[Compact, Trace]:
        plan = Plan(
            tuple(
                LeafPlan(leaf.path, leaf.shape, kept_of(trace.gone(i, gone)))
                for i, leaf in enumerate(trace.leaves)
            )
        )
        less = plan._applied(params, masks, in_jax)
        less = _replaced(less, plan, {i: dead.arrays[i] for i in changed})
        program = Trace(partial(rewritten, trace, plan), less, args)
        return Compact(less, plan, fn, params, masks), program

    def explained(
        found: tuple[Compact, Trace], gone: Array
    ) -> tuple[Compact, Trace]:
        small, program = found
        pools = pools_of(trace)
        plan = small.plan._replace(
            left=tuple(left_over(trace, dead, gone)),
            sizes={p.name: int((~gone[p.units]).sum(1).max()) for p in pools},
        )
        return replace(small, plan=plan), program

    try:
        return explained(removed(dead.units, dead.folded), dead.units)
    except Unsupported:
        # One set of units after the other; what is dead and stays is 0.
        floating = [i for i, leaf in enumerate(trace.leaves) if leaf.floating]
        gone = np.zeros_like(dead.units)
        for pool in pools_of(trace):
            more = gone.copy()
            more[pool.units] = dead.units[pool.units]
            with suppress(Unsupported):
                removed(more, floating)
                gone = more
        return explained(removed(gone, floating), gone)


def smaller(fn: Any, shapes: Tree, plan: Plan) -> Any:
    """``fn`` for parameters that a plan has cut."""

    def small_fn(params: Tree, *args: Any) -> Any:
        trace = Trace(fn, shapes, args)
        trace.walk([None] * len(trace.leaves))
        trace.number()
        return rewritten(trace, plan, params, *args)

    return small_fn


def rewritten(trace: Trace, plan: Plan, params: Tree, *args: Any) -> Any:
    """What the traced program returns, computed with what is left of it."""
    check(trace, plan)
    inputs = _inputs(trace, plan, params)
    inputs += [dense(jnp.asarray(x)) for x in jax.tree.leaves(args)]
    outs = Rewrite().closed(trace.jaxpr, inputs)
    found = [v.full() for v in outs]
    if any(mask is not None for v in outs for mask in v.masks):
        raise Unsupported("`fn` of `compact`: an output would be smaller")
    return jax.tree.unflatten(jax.tree.structure(trace.output), found)


def _inputs(trace: Trace, plan: Plan, params: Tree) -> list[Small]:
    """The smaller parameters, refused if they are others."""
    call = "`fn` of `compact`"
    arrays = [(p, x) for p, x in leaves_with_path(params) if not is_hole(x)]
    if len(arrays) != len(trace.leaves):
        raise ValueError(
            f"{call} takes {len(trace.leaves)} parameters, got {len(arrays)}."
        )
    inputs = []
    for i, ((path, x), leaf) in enumerate(
        zip(arrays, trace.leaves, strict=True)
    ):
        small = Small(x, leaf.shape, tuple(map(tidy, plan.masks(i))))
        if np.shape(x) != small.sizes:
            raise ValueError(
                f"{call}: {path_name(path)!r} has shape {np.shape(x)}, the "
                f"smaller {leaf.path!r} {small.sizes}."
            )
        inputs.append(small)
    return inputs


def check(trace: Trace, plan: Plan) -> None:
    """Refuses a program in which what was removed would add anything."""
    dead = np.ones(trace.count, bool)
    removed = [
        [None if m is None else ~m for m in plan.masks(i)]
        for i in range(len(trace.leaves))
    ]
    for units, places in _pairs(trace, removed):
        kept = units if places is None else units[~places]
        dead[kept[kept >= 0]] = False
    call = "`fn` of `compact`, with arguments of these shapes"
    for units, places in _pairs(trace, removed):
        if places is not None:
            gone = np.append(dead, False)[units[places]]  # -1 is never dead
            if not gone.any(-1).all():
                raise Unsupported(
                    f"{call}: what was removed is no longer a unit of its own."
                )
    for site in trace.walk(trace.zeroed(dead)).sums():
        units = trace.touched(site, site.adds)
        if dead[units].any():
            raise Unsupported(
                f"{call}: what was removed would add to a sum in {site.why}."
            )


def _pairs(trace: Trace, gone: list[list[Array | None]]) -> Any:
    """Units of each axis, and which of its positions are gone."""
    for leaf, places in zip(trace.units, gone, strict=True):
        for units, here in zip(leaf, places, strict=True):
            if here is not None:
                shape = units.shape[:-1]
                here = np.broadcast_to(
                    here if units.ndim == 3 else here[0], shape
                )
            yield units, here


def host(params: Tree, masks: Masks | None) -> list[Stored]:
    """The masked parameters on the host; keys and the like as zeros."""
    found = []
    mask_of = {} if masks is None else dict(leaves_with_path(masks))
    for path, x in leaves_with_path(params):
        if is_hole(x):
            continue
        try:
            x = np.asarray(x)
        except TypeError:
            x = np.zeros(np.shape(x), np.uint8)
        mask = mask_of.get(path)
        kept = [] if mask is None or is_hole(mask) else [np.asarray(mask)]
        found.append(Stored(x, kept, x.dtype))
    return found


def fitted(params: Tree, masks: Masks) -> Masks:
    """Masks that mirror ``params``, from masks of a part of it."""
    aligned = align_masks("`compact(masks=...)`", params, masks)
    leaves = leaves_with_path(params)
    return rebuild(
        params,
        [
            None
            if mask is None
            else np.broadcast_to(np.asarray(mask), np.shape(x))  # no copy
            for (_, x), mask in zip(leaves, aligned, strict=True)
        ],
    )


def _masked(params: Tree, masks: Masks | None) -> Tree:
    return params if masks is None else apply_masks(params, masks)


def _replaced(params: Tree, plan: Plan, biases: dict[int, Stored]) -> Tree:
    """With the biases into which constants were folded."""
    found, i = [], 0
    for _, x in leaves_with_path(params):
        if not is_hole(x):
            if i in biases:
                kept = plan.leaves[i].kept
                bias = np.asarray(cut(biases[i].value, kept))
                x = in_jax(bias.astype(np.asarray(x).dtype))
            i += 1
        found.append(x)
    return rebuild(params, found)
