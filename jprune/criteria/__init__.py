"""Criteria score weights. The weights with the highest scores are kept."""

from jprune.criteria._activation import activation as activation
from jprune.criteria._base import Criterion as Criterion
from jprune.criteria._curvature import curvature as curvature
from jprune.criteria._custom import custom as custom
from jprune.criteria._fisher import fisher as fisher
from jprune.criteria._gauss_newton import gauss_newton as gauss_newton
from jprune.criteria._gradient import gradient as gradient
from jprune.criteria._gradient import taylor as taylor
from jprune.criteria._magnitude import magnitude as magnitude
from jprune.criteria._movement import movement as movement
from jprune.criteria._random import random as random
from jprune.criteria._snip import snip as snip

__all__ = [
    "Criterion",
    "activation",
    "curvature",
    "custom",
    "fisher",
    "gauss_newton",
    "gradient",
    "magnitude",
    "movement",
    "random",
    "snip",
    "taylor",
]
