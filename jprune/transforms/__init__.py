"""Transforms decide when to prune. Each goes last in an optax chain."""

from jprune.transforms._check_chain import ChainReport as ChainReport
from jprune.transforms._check_chain import check_chain as check_chain
from jprune.transforms._keep_masks import KeepMasksState as KeepMasksState
from jprune.transforms._keep_masks import keep_masks as keep_masks
from jprune.transforms._project import ProjectState as ProjectState
from jprune.transforms._project import project as project
from jprune.transforms._project import (
    project_frobenius_ball as project_frobenius_ball,
)
from jprune.transforms._prune import PruneState as PruneState
from jprune.transforms._prune import prune as prune
from jprune.transforms._rewire import RewireState as RewireState
from jprune.transforms._rewire import rewire as rewire
from jprune.transforms._rigl import rigl as rigl
from jprune.transforms._sparse_evolution import (
    sparse_evolution as sparse_evolution,
)
from jprune.transforms._with_gradients import with_gradients as with_gradients

__all__ = [
    "ChainReport",
    "KeepMasksState",
    "ProjectState",
    "PruneState",
    "RewireState",
    "check_chain",
    "keep_masks",
    "project",
    "project_frobenius_ball",
    "prune",
    "rewire",
    "rigl",
    "sparse_evolution",
    "with_gradients",
]
