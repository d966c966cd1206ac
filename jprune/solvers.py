"""Solvers prune and repair a kernel; see :func:`jprune.one_shot`."""

from jprune.calibration.solvers import Problem as Problem
from jprune.calibration.solvers import Solver as Solver
from jprune.calibration.solvers import admm as admm
from jprune.calibration.solvers import mask_only as mask_only
from jprune.calibration.solvers import obs as obs
from jprune.calibration.solvers import sparsegpt as sparsegpt

__all__ = ["Problem", "Solver", "admm", "mask_only", "obs", "sparsegpt"]
