"""Grids: which numbers a weight may be; see :func:`jprune.one_shot`."""

from jprune.calibration.grids import Grid as Grid
from jprune.calibration.grids import integer as integer

__all__ = ["Grid", "integer"]
