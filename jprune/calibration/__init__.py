"""Repairs pruned models, from statistics of the inputs of their layers."""

from jprune._core.stats import Moments as Moments
from jprune._core.stats import Site as Site
from jprune._core.stats import Stats as Stats
from jprune.calibration.calibrate import calibrate as calibrate
from jprune.calibration.one_shot import Errors as Errors
from jprune.calibration.one_shot import OneShot as OneShot
from jprune.calibration.one_shot import one_shot as one_shot
from jprune.calibration.refit import refit as refit

__all__ = [
    "Errors",
    "Moments",
    "OneShot",
    "Site",
    "Stats",
    "calibrate",
    "one_shot",
    "refit",
]
