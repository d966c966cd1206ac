"""Statistics of the inputs that parameters are multiplied with."""

from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jprune._core.describe import describe
from jprune._core.hosts import check_together
from jprune._core.programs import bound, check_call
from jprune._core.progress import each
from jprune._core.stats import Moments, Site, Stats
from jprune._core.trees import is_floating, leaves_with_path
from jprune._core.typing import Tree, Where
from jprune._core.where import PRUNED, check_where, select
from jprune.calibration.labels import labels_of
from jprune.calibration.reader import Reader, sites_from
from jprune.calibration.values import Data, Value, view_of
from jprune.jaxprs.products import trace_products
from jprune.jaxprs.program import leaves_of


def calibrate(
    fn: Any,
    params: Tree,
    batches: Iterable[Any],
    *,
    where: Where = None,
    weights: Callable[..., Any] | None = None,
    **static: Any,
) -> Stats:
    r"""Collects statistics of each layer's inputs: Gram matrices, sums and counts.

    jprune reads the jaxpr of ``fn``, whatever the model is written in. It looks at every
    product of a parameter with inputs :math:`X \in \mathbb{R}^{M \times K}` that depend
    on the arguments, and sums :math:`X^T X`, :math:`X^T 1` and :math:`M`. The rows of a
    convolution are its windows, padding included.

    Products that share an input share its sums. Each layer of a scan has sums of its
    own, as have experts and groups; weights that a loop uses at every iteration have the
    sums of all iterations. A branch that is not taken adds zeros. Products inside a
    ``while`` are not seen, nor layers that a loop looks up by its counter (``w[i]`` in a
    ``fori_loop``): ``stats.missed`` lists them. Use a scan over the stack instead.

    Args:
      fn: Any function of parameters and arrays.
      params: Its parameters.
      batches: An iterable of batches. A batch is the tuple of fn's further arguments, or
        the only one: ``[(x,)]`` is one batch. The iterable is read once; in a terminal,
        a long one shows a tqdm progress bar.
      where: The parameters that are looked at, as in :func:`jprune.find_masks`. None:
        all that have a product.
      weights: ``weights(*batch) -> [batch]`` or ``[batch, length]``: how much each row
        counts, 0 for padding. jprune follows the batch's axes through the program, and
        raises an error where it can't. None: all rows count the same.
      **static: Further keyword arguments of ``fn``, fixed; no arrays.

    Returns:
      :class:`~jprune.calibration.Stats`: arrays in float32 (float64 for inputs in
      float64), which print as a table. Statistics of several batches or hosts can be
      added: ``jax.tree.map(jnp.add, a, b)``. ``stats.missed`` says which parameters
      have none, and why.

    Raises:
      ValueError: No batch, an array in place of an iterable, NaN or inf in an input
        (the parameter is named), a ``where`` that selects nothing that is multiplied,
        or weights that can't be followed.

    Cost: a forward pass, and for each input :math:`M K^2` multiply-adds and :math:`K^2`
    numbers in memory. One compilation for each shape of a batch. Sharded batches are not
    moved; their Gram matrices are reduced.

    References:
      Frantar and Alistarh, `SparseGPT <https://arxiv.org/abs/2301.00774>`_, 2023; Sun
      et al., `Wanda <https://arxiv.org/abs/2306.11695>`_, 2023.

    >>> import jax.numpy as jnp, jprune
    >>> def fn(params, x):
    ...     return x @ params["w"]
    >>> params = {"w": jnp.ones((2, 3))}
    >>> stats = jprune.calibrate(fn, params, [jnp.array([[1., 2.]]),
    ...                                       jnp.array([[3., 0.]])])
    >>> print(stats)
    parameter  inputs  rows  never active
    -------------------------------------
    w           1 x 2     2             0
    >>> stats.moments[0].gram[0]
    Array([[10.,  2.],
           [ 2.,  4.]], dtype=float32)
    """
    call = "calibrate"
    if weights is not None and not callable(weights):
        raise ValueError(
            f"`{call}(weights=...)` must be a function of a batch, got "
            f"{describe(weights)}."
        )
    check_where(call, where)
    fn = bound(call, fn, static)
    check_call(call, fn, params, (), concrete=False)
    plan = Plan(call, fn, params, where)
    step = jax.jit(plan.sums)
    total: tuple[Moments, ...] | None = None
    for number, batch in enumerate(read_batches(call, batches)):
        args = arguments(batch)
        check_call(call, fn, params, args, concrete=number == 0)
        check_together(call, number, params, args)
        rows = weights_of(call, weights, args)
        found = step(params, args, rows)
        check_finite(call, number, plan.sites, found)
        total = found if total is None else _added(total, found)
    if total is None:
        raise ValueError(f"`{call}(batches=...)` is empty: nothing was read.")
    return Stats(total, tuple(plan.sites), plan.missed)


NOT_AS_IT_IS = "is not multiplied as it is with what comes from the arguments"
IN_A_LOOP = (
    "is multiplied inside of a loop that finds it by a counter; a `lax.scan` "
    "over the stack is read, and so are unrolled layers"
)


class Plan:
    """Which products are looked at, and a function that sums up one batch."""

    def __init__(self, call: str, fn: Any, params: Tree, where: Where) -> None:
        self.call, self.fn = call, fn
        self.leaves = leaves_of(params)
        self.names = [leaf.path for leaf in self.leaves]
        self.chosen = [leaf.floating for leaf in self.leaves]
        if where is not None:
            picks = select(call, where, params, PRUNED)
            arrays = [
                pick
                for (_, x), pick in zip(
                    leaves_with_path(params), picks, strict=True
                )
                if hasattr(x, "dtype") or isinstance(x, bool | int | float)
            ]
            self.chosen = arrays
        self.sites: list[Site] = []
        self.repeated: list[bool] = []
        self.missed: tuple[tuple[str, str], ...] = ()

    def sums(
        self, params: Tree, args: tuple[Any, ...], weights: Any = None
    ) -> tuple[Moments, ...]:
        """The sums of one batch; notes :attr:`sites` while it is traced."""
        leaves = jax.tree.leaves(params)
        reader = Reader(
            leaves,
            self.names,
            None if weights is None else [weights],
            wanted=lambda i: self.chosen[i],
        )
        with reading(self.call, args):
            program = jax.make_jaxpr(self.fn)(params, *args)
        reader.program(program, inputs_of(leaves, [args], [weights]))
        self.sites = sites_from(reader)
        self.repeated = [one.repeated for one in reader.found]
        seen = {site.path for site in self.sites}
        if any(
            pick and leaf.path not in seen
            for pick, leaf in zip(self.chosen, self.leaves, strict=True)
        ):
            products = trace_products(self.fn, params, *args)
            why = dict.fromkeys((x.path for x in self.leaves), NOT_AS_IT_IS)
            why |= {use.path: IN_A_LOOP for use in products.uses}
            why |= products.missed
            self.missed = tuple(
                (leaf.path, why[leaf.path])
                for pick, leaf in zip(self.chosen, self.leaves, strict=True)
                if pick and len(leaf.shape) > 1 and leaf.path not in seen
            )
        if not seen:
            reasons = "".join(f" {path!r} {why}." for path, why in self.missed)
            raise ValueError(
                f"`{self.call}`: no selected parameter is multiplied with what "
                "comes from the arguments where that is read; "
                "`jprune.trace_products(fn, params, *args)` shows what is, and "
                f"why others are not.{reasons}"
            )
        return tuple(reader.sums)


def inputs_of(
    leaves: list[Any], batches: list[tuple[Any, ...]], weights: list[Any]
) -> list[Value]:
    """The inputs of a program: views of parameters, then the arguments."""
    found: list[Value] = [view_of(i, x) for i, x in enumerate(leaves)]
    columns = zip(*map(jax.tree.leaves, batches), strict=True)
    for column in columns:
        label: Any = ()
        if weights[0] is not None:
            label = labels_of(np.shape(column[0]), weights[0])
        found.append(Data(tuple(column), None, True, label))
    return found


def read_batches(call: str, batches: Iterable[Any]) -> Iterator[Any]:
    """Batches in turn, with a bar where there is a terminal and it takes long."""
    if hasattr(batches, "dtype") or not isinstance(batches, Iterable):
        raise ValueError(
            f"`{call}(batches=...)` must be an iterable of batches, each the "
            f"tuple of fn's arguments; got {describe(batches)}. For one batch "
            "write `[(x,)]`."
        )
    yield from each(call, batches)


def arguments(batch: Any) -> tuple[Any, ...]:
    """The arguments that a batch is; anything but a tuple is the only one."""
    return batch if isinstance(batch, tuple) else (batch,)


@contextmanager
def reading(call: str, args: tuple[Any, ...]) -> Iterator[None]:
    """Adds to a TypeError of fn's what a batch is: often it holds labels too."""
    try:
        yield
    except TypeError as error:
        if len(args) > 1:
            error.add_note(
                f"`{call}(batches=...)`: fn was called with the parameters and "
                f"the {len(args)} entries of a batch. Leave out what it does not "
                "read, such as labels: `[(x,) for x, y in batches]`."
            )
        raise


def weights_of(
    call: str, weights: Callable[..., Any] | None, args: tuple[Any, ...]
) -> Any:
    """The weights of a batch's rows: [batch] or [batch, length], or None."""
    if weights is None:
        return None
    rows = weights(*args)
    if np.ndim(rows) not in (1, 2) or not (
        is_floating(rows) or np.asarray(rows).dtype.kind in "biu"
    ):
        raise ValueError(
            f"`{call}(weights=...)` must return numbers of shape [batch] or "
            f"[batch, length], got {describe(rows)}."
        )
    return jnp.asarray(rows)


def check_finite(
    call: str, number: int, sites: list[Site], sums: tuple[Moments, ...]
) -> None:
    """Refuses NaN and inf in what was summed up."""
    fine = jax.device_get(_finite(sums))
    for site in sites:
        if not fine[site.moments]:
            raise ValueError(
                f"`{call}`: batch {number} has NaN or inf in what {site.path!r} "
                "is multiplied with, or its squares overflow; clean the batch, "
                "compute in float32, or leave the parameter out by `where=`."
            )


@jax.jit
def _finite(sums: tuple[Moments, ...]) -> list[jax.Array]:
    return [
        jnp.all(jnp.isfinite(jnp.diagonal(x.gram, axis1=-2, axis2=-1)))
        & jnp.all(jnp.isfinite(x.sum))
        for x in sums
    ]


@jax.jit
def _added(a: Any, b: Any) -> Any:
    return jax.tree.map(jnp.add, a, b)
