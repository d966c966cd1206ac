"""Really smaller: units, and models without the dead ones."""

from jprune.compaction._certificate import Certificate as Certificate
from jprune.compaction._certificate import compare as compare
from jprune.compaction._compact import Compact as Compact
from jprune.compaction._compact import compact as compact
from jprune.compaction._graph import Frozen as Frozen
from jprune.compaction._graph import Graph as Graph
from jprune.compaction._graph import Pool as Pool
from jprune.compaction._graph import Product as Product
from jprune.compaction._graph import trace_units as trace_units
from jprune.compaction._plan import LeafPlan as LeafPlan
from jprune.compaction._plan import Plan as Plan
from jprune.compaction._units import units as units

__all__ = [
    "Certificate",
    "Compact",
    "Frozen",
    "Graph",
    "LeafPlan",
    "Plan",
    "Pool",
    "Product",
    "compact",
    "compare",
    "trace_units",
    "units",
]
