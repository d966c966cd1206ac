"""Finds how far a model can be compressed within a loss that you allow."""

from jprune._core.costs import Polynomial as Polynomial
from jprune._core.fits import Fit as Fit
from jprune.search.compress import Compressed as Compressed
from jprune.search.compress import compress as compress
from jprune.search.curves import Curves as Curves
from jprune.search.distances import kl as kl
from jprune.search.distances import squared_error as squared_error
from jprune.search.distill import distill as distill
from jprune.search.fitting import fit as fit
from jprune.search.front import Front as Front
from jprune.search.front import Point as Point
from jprune.search.promise import Promise as Promise
from jprune.search.promise import Worst as Worst
from jprune.search.sensitivity import sensitivity as sensitivity

__all__ = [
    "Compressed",
    "Curves",
    "Fit",
    "Front",
    "Point",
    "Polynomial",
    "Promise",
    "Worst",
    "compress",
    "distill",
    "fit",
    "kl",
    "sensitivity",
    "squared_error",
]
