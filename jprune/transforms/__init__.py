"""Transforms: when. All of them stand last in an optax chain."""

from jprune.transforms._keep_masks import KeepMasksState as KeepMasksState
from jprune.transforms._keep_masks import keep_masks as keep_masks
from jprune.transforms._project import ProjectState as ProjectState
from jprune.transforms._project import project as project
from jprune.transforms._project import (
    project_frobenius_ball as project_frobenius_ball,
)
from jprune.transforms._prune import PruneState as PruneState
from jprune.transforms._prune import prune as prune
from jprune.transforms._with_gradients import with_gradients as with_gradients

__all__ = [
    "KeepMasksState",
    "ProjectState",
    "PruneState",
    "keep_masks",
    "project",
    "project_frobenius_ball",
    "prune",
    "with_gradients",
]
