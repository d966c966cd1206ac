"""Prunes JAX models with optax transforms, and makes them smaller and faster."""

from jprune import allocations as allocations
from jprune import calibration as calibration
from jprune import compaction as compaction
from jprune import criteria as criteria
from jprune import export as export
from jprune import grids as grids
from jprune import plot as plot
from jprune import projections as projections
from jprune import report as report
from jprune import search as search
from jprune import selection as selection
from jprune import solvers as solvers
from jprune import structures as structures
from jprune import transforms as transforms
from jprune.calibration import calibrate as calibrate
from jprune.calibration import one_shot as one_shot
from jprune.calibration import refit as refit
from jprune.choosing.choose import find_masks as find_masks
from jprune.compaction import compact as compact
from jprune.compaction import compare as compare
from jprune.compaction import trace_units as trace_units
from jprune.compaction import units as units
from jprune.jaxprs import trace_products as trace_products
from jprune.masks import LeafSummary as LeafSummary
from jprune.masks import Summary as Summary
from jprune.masks import apply_masks as apply_masks
from jprune.masks import get_masks as get_masks
from jprune.masks import measure_sparsity as measure_sparsity
from jprune.masks import read_masks as read_masks
from jprune.masks import summarize as summarize
from jprune.search import compress as compress
from jprune.search import distill as distill
from jprune.transforms import ChainReport as ChainReport
from jprune.transforms import KeepMasksState as KeepMasksState
from jprune.transforms import ProjectState as ProjectState
from jprune.transforms import PruneState as PruneState
from jprune.transforms import RewireState as RewireState
from jprune.transforms import check_chain as check_chain
from jprune.transforms import keep_masks as keep_masks
from jprune.transforms import project as project
from jprune.transforms import project_frobenius_ball as project_frobenius_ball
from jprune.transforms import prune as prune
from jprune.transforms import rewire as rewire
from jprune.transforms import rigl as rigl
from jprune.transforms import sparse_evolution as sparse_evolution
from jprune.transforms import with_gradients as with_gradients
from jprune.transforms._straight_through import (
    straight_through as straight_through,
)

__version__ = "0.2.0"

__all__ = [
    "ChainReport",
    "KeepMasksState",
    "LeafSummary",
    "ProjectState",
    "PruneState",
    "RewireState",
    "Summary",
    "allocations",
    "apply_masks",
    "calibrate",
    "calibration",
    "check_chain",
    "compact",
    "compaction",
    "compare",
    "compress",
    "criteria",
    "distill",
    "export",
    "find_masks",
    "get_masks",
    "grids",
    "keep_masks",
    "measure_sparsity",
    "one_shot",
    "plot",
    "project",
    "project_frobenius_ball",
    "projections",
    "prune",
    "read_masks",
    "refit",
    "report",
    "rewire",
    "rigl",
    "search",
    "selection",
    "solvers",
    "sparse_evolution",
    "straight_through",
    "structures",
    "summarize",
    "trace_products",
    "trace_units",
    "transforms",
    "units",
    "with_gradients",
]
