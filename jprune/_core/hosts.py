"""Arrays that are spread over several hosts, each of which sees a part."""

from typing import Any

import jax
import numpy as np

from jprune._core.checks import is_traced
from jprune._core.trees import is_hole, leaves_with_path, path_name
from jprune._core.typing import Tree


def check_here(call: str, *trees: Tree) -> None:
    """Refuses arrays whose values this host can't read.

    Raises:
      ValueError: A part of an array is on another host alone; the leaf is named.
    """
    for tree in trees:
        for path, x in leaves_with_path(tree):
            if _over_hosts(x) and not x.is_fully_replicated:
                raise ValueError(
                    f"`{call}`: {path_name(path)!r} is divided among several "
                    "hosts, and its values are read on each of them; gather them "
                    "first, on all hosts, by `jax.experimental.multihost_utils."
                    "process_allgather(tree, tiled=True)`."
                )


def check_together(call: str, number: int, params: Tree, args: Any) -> None:
    """Refuses a batch of this host's own in a computation of all hosts.

    JAX takes it for the same on every host, and does not look: each host would go
    on with other sums, and with other masks.

    Raises:
      ValueError: Parameters, some of the batch or the mesh of ``jax.set_mesh`` are
        on several hosts, and an array of the batch is on this one alone.
    """
    if jax.process_count() == 1:
        return
    leaves = [(path, x) for path, x in leaves_with_path(args) if not is_hole(x)]
    own = [path for path, x in leaves if np.ndim(x) and not _over_hosts(x)]
    held = [x for _, x in (*leaves_with_path(params), *leaves)]
    if own and (any(map(_over_hosts, held)) or _mesh_over_hosts()):
        raise ValueError(
            f"`{call}`: batch {number}, {path_name(own[0])!r}, is an array of this "
            "host alone, and other arrays, or the mesh that is set, are on several "
            "hosts. If each host has its own rows, bring them together by "
            "`jax.make_array_from_process_local_data(sharding, x)`; if all have the same, place them by `jax.device_put(x, "
            "NamedSharding(mesh, PartitionSpec()))`."
        )


def _over_hosts(x: Any) -> bool:
    return (
        isinstance(x, jax.Array)
        and not is_traced(x)
        and not x.is_fully_addressable
    )


def _mesh_over_hosts() -> bool:
    """Whether what has no place yet would go to several hosts."""
    mesh = jax.sharding.get_mesh()
    return not mesh.empty and mesh.is_multi_process
