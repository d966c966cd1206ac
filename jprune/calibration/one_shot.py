"""Pruned and repaired at once, from inputs alone."""

from collections.abc import Callable, Iterable, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jprune._core.checks import check_fixed, check_member, check_order
from jprune._core.describe import describe
from jprune._core.hosts import check_together
from jprune._core.layout import placed_like
from jprune._core.programs import bound, check_call
from jprune._core.seeds import key_maker
from jprune._core.tables import table
from jprune._core.trees import is_hole
from jprune._core.typing import Masks, Tree, Where
from jprune._core.where import check_where
from jprune.allocations import Allocation, uniform
from jprune.calibration.by_unit import ByUnit
from jprune.calibration.by_weight import ByWeight
from jprune.calibration.calibrate import arguments, read_batches, weights_of
from jprune.calibration.grids import Grid
from jprune.calibration.repair import Inputs
from jprune.calibration.solvers import Solver, admm, obs
from jprune.choosing.choose import find_masks
from jprune.choosing.families import method_of
from jprune.choosing.targets import check_reach, counts_of
from jprune.criteria import Criterion, magnitude
from jprune.masks import apply_masks
from jprune.structures import Structure, unstructured


class Errors(dict[str, tuple[float, float]]):
    """Errors of the outputs of each product, before and after the repair.

    A dict ``{path: (before, after)}`` that prints as a table. An error is the sum of
    squared differences between the outputs of the product with this parameter and their
    targets, as a fraction of the targets' sum of squares. ``before`` is with the mask
    alone, and ``after`` with the repaired weights and bias.
    """

    def __init__(self, errors: Mapping[str, tuple[float, float]]) -> None:
        super().__init__(errors)

    def __str__(self) -> str:
        rows = [
            (path, f"{before:.4f}", f"{after:.4f}")
            for path, (before, after) in self.items()
        ]
        head = ("parameter", "masked", "repaired")
        return table([head, *rows, ("",) * 3], 1).rsplit("\n", 2)[0]


class OneShot(NamedTuple):
    """What :func:`one_shot` returns."""

    params: Tree
    masks: Masks
    errors: Errors
    missed: Mapping[str, str]  # {path: why it was left as it is}


def one_shot(
    fn: Any,
    params: Tree,
    batches: Iterable[Any],
    sparsity: Any,
    *,
    solver: Solver | None = None,
    criterion: Criterion | None = None,
    structure: Structure = unstructured(),
    allocation: Allocation | None = None,
    where: Where = None,
    targets: str = "own",
    grid: Any = None,
    weights: Callable[..., Any] | None = None,
    key: Any = None,
    **static: Any,
) -> OneShot:
    r"""Prunes a trained model and repairs it, without labels or training.

    jprune runs the function once, with all batches, and stops at each product with a
    parameter: it prunes the parameter, changes the kept weights so that the outputs
    stay what they were, and goes on with the new weights. So each layer, also inside a
    scan, sees the inputs that the pruned layers before it produce. For a kernel
    :math:`W` with inputs :math:`X` and a mask :math:`M` it solves

    .. math:: \min_{V} |X V - X W|_F^2 \quad \text{where } V = M \odot V.

    How many units are removed is computed beforehand from the dense parameters, and is
    exact.

    Args:
      fn: Any function of parameters and arrays.
      params: Its parameters, trained.
      batches: As in :func:`calibrate`; all are held in memory at once. A thousand rows
        are enough; fewer rows than a layer has inputs give a worse repair.
      sparsity: The fraction of units removed, a number in [0, 1].
      solver: How weights are pruned and repaired; see :mod:`jprune.solvers`. None:
        ``obs()`` for whole units (``units(graph)``), else ``admm()``.
      criterion: Chooses the weights to remove before anything is repaired; the solver
        then only repairs. None: the solver chooses; ``mask_only()`` uses
        ``magnitude()``.
      structure: Which weights form a unit; see :mod:`jprune.structures`.
      allocation: How much is removed from each leaf. None: ``uniform()``.
      where: Which parameters are pruned, as in :func:`jprune.find_masks`.
      targets: The outputs to reproduce: ``"own"``, those of the dense kernel on the
        inputs that it gets now, or ``"dense"``, those of the dense model. The latter
        costs a second forward pass and is closer at high sparsity. It is always used
        if whole units are chosen before the repair, as by a ``criterion``.
      grid: Rounds weights too; see :mod:`jprune.grids`. For weights, not units.
      weights: How much each row counts, as in :func:`calibrate`.
      key: A seed or a random key, for criteria that need one.
      **static: Further keyword arguments of ``fn``, fixed; no arrays.

    Returns:
      :class:`OneShot`: ``params``, 0 where they are masked, and ``masks``, both divided
      among devices as the parameters were; ``errors``, which prints as a table; and
      ``missed``, the parameters that were left as they are, with the reason: no product,
      no row in these batches, or several products of different kinds. A bias that is
      added to a product is changed too, to correct the mean, unless several products
      share it. If the solver chooses, inputs that are always 0 are removed first, and so
      are constant ones if there is a bias.

    Raises:
      ValueError: As :func:`calibrate` and :func:`jprune.find_masks`; the solver does not
        support the structure; a Gram matrix is singular for it.

    Cost: about two forward passes, :math:`M K^2` for each input, and the solver. Memory
    holds the values of all batches that are still needed.

    References:
      Frantar and Alistarh, `SparseGPT <https://arxiv.org/abs/2301.00774>`_, 2023; Sun
      et al., `Wanda <https://arxiv.org/abs/2306.11695>`_, 2023; Boza, `Fast and
      Effective Weight Update for Pruned LLMs <https://arxiv.org/abs/2401.02938>`_,
      2024 (ADMM); Hassibi and Stork, `Optimal Brain Surgeon
      <https://proceedings.neurips.cc/paper/1992/hash/303ed4c69846ab36c2904d3ba8573050-Abstract.html>`_,
      1992.

    >>> import jax, jax.numpy as jnp, jprune
    >>> def fn(params, x):
    ...     return x @ params["w"]
    >>> x = jax.random.normal(jax.random.key(0), (100, 4))
    >>> x = x.at[:, 1].set(x[:, 0])  # the second input says what the first does
    >>> params = {"w": jnp.array([[2.], [1.], [.5], [.1]])}
    >>> result = jprune.one_shot(fn, params, [x], .5,
    ...                          solver=jprune.solvers.sparsegpt())
    >>> result.masks["w"][:, 0]
    Array([False,  True,  True, False], dtype=bool)
    >>> [round(float(w), 1) for w in result.params["w"][:, 0]]  # it takes over
    [0.0, 3.0, 0.5, 0.0]
    >>> print(result.errors)
    parameter  masked  repaired
    ---------------------------
    w          0.4468    0.0016
    """
    call = "one_shot"
    fn = bound(call, fn, static)
    check_call(call, fn, params, (), concrete=True)
    allocation = uniform() if allocation is None else allocation
    fixed = criterion is not None
    criterion = magnitude() if criterion is None else criterion
    method = method_of(call, criterion, structure, allocation)
    if solver is None:
        solver = obs() if structure.members is not None else admm()
    check_member(call, "solver", solver, Solver)
    if targets not in ("own", "dense"):
        raise ValueError(
            f"`{call}(targets=...)` must be 'own' or 'dense', got "
            f"{describe(targets)}."
        )
    if grid is not None:
        check_member(call, "grid", grid, Grid)
    if structure.members is not None:
        if grid is not None:
            raise ValueError(
                f"`{call}(grid=..., structure=...)`: units are removed and not "
                "rounded; compact the result, and round it by "
                "`one_shot(small.fn, small.params, batches, 0., grid=...)`."
            )
        if solver.choose_inputs is None and solver.repairs:
            raise ValueError(
                f"`{call}(solver=..., structure=...)`: `{solver}` prunes weights, "
                f"and `{structure}` has whole units; `obs()` removes those."
            )
    check_order(call, params, sparsity)
    sparsity = check_fixed(call, sparsity)
    check_where(call, where)
    read = [arguments(x) for x in read_batches(call, batches)]
    if not read:
        raise ValueError(f"`{call}(batches=...)` is empty: nothing was read.")
    for number, args in enumerate(read):
        check_call(call, fn, params, args, concrete=False)
        check_together(call, number, params, args)
        check_alike(call, number, args, read[0])
    chosen = method.choose(where, params)
    if key is not None:
        key = key_maker(call, key)()
    masks = counts = None
    if fixed or allocation.joint or structure.members is not None:
        masks = find_masks(
            params,
            sparsity,
            criterion=criterion,
            structure=structure,
            allocation=allocation,
            where=where,
            key=key,
        )
    else:
        check_reach(method, chosen, sparsity)
        counts = counts_of(method, chosen, sparsity)
    rows = [weights_of(call, weights, args) for args in read]
    inputs = Inputs(call, fn, params, chosen, read, rows)
    rest = solver, targets, grid
    if structure.members is None:
        run: Any = ByWeight(inputs, method, chosen, counts, masks, fixed, *rest)
    else:
        run = ByUnit(inputs, method, masks, chosen, fixed, *rest)
    leaves, masks = run.result()
    new = apply_masks(inputs.tree(leaves), masks)
    new, masks = _as_before(params, new), _as_before(params, masks)
    return OneShot(new, masks, Errors(run.table()), inputs.missed)


def _as_before(params: Tree, tree: Tree) -> Tree:
    """A tree like the parameters, divided among devices as they are."""

    def leaf(x: Any, here: Any) -> Any:
        return here if is_hole(here) else placed_like(x, here)

    return jax.tree.map(leaf, params, tree, is_leaf=is_hole)


def check_alike(call: str, number: int, args: Any, first: Any) -> None:
    """All batches are walked with one program, whose shapes are fixed."""
    here, there = (
        jax.tree.map(lambda x: (np.shape(x), jnp.result_type(x).name), batch)
        for batch in (args, first)
    )
    if here != there:
        raise ValueError(
            f"`{call}(batches=...)`: batch {number} is {here}, and batch 0 is "
            f"{there}; all need the same shapes. Leave the last one out, or pad "
            "it and give its padding weight 0 by `weights=`."
        )
