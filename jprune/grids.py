"""Grids are sets of values to which :func:`jprune.one_shot` rounds weights."""

from jprune.calibration.grids import Grid as Grid
from jprune.calibration.grids import integer as integer

__all__ = ["Grid", "integer"]
