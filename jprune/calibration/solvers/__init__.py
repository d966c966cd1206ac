"""Solvers: how a kernel is pruned and repaired."""

from jprune.calibration.solvers.admm import admm as admm
from jprune.calibration.solvers.base import Problem as Problem
from jprune.calibration.solvers.base import Solver as Solver
from jprune.calibration.solvers.mask_only import mask_only as mask_only
from jprune.calibration.solvers.obs import obs as obs
from jprune.calibration.solvers.sparsegpt import sparsegpt as sparsegpt

__all__ = ["Problem", "Solver", "admm", "mask_only", "obs", "sparsegpt"]
