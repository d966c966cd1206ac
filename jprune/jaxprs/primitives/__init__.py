"""The records of all primitives that are understood."""

from typing import Any

from jprune.jaxprs.primitives import lookups as lookups
from jprune.jaxprs.primitives import moves as moves
from jprune.jaxprs.primitives import pointwise as pointwise
from jprune.jaxprs.primitives import products as products
from jprune.jaxprs.primitives import reductions as reductions
from jprune.jaxprs.records import RECORDS, Record


def record_of(eqn: Any) -> Record:
    """The record of an equation; None if it is not understood."""
    find = RECORDS.get(eqn.primitive.name)
    return None if find is None else find(eqn)
