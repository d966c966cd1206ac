"""Finds the units of a model, and removes those that are pruned."""

from jprune.compaction._certificate import Certificate as Certificate
from jprune.compaction._certificate import compare as compare
from jprune.compaction._units import units as units
from jprune.compaction.graph.pools import Frozen as Frozen
from jprune.compaction.graph.pools import Graph as Graph
from jprune.compaction.graph.pools import Pool as Pool
from jprune.compaction.graph.pools import Product as Product
from jprune.compaction.graph.pools import trace_units as trace_units
from jprune.compaction.removal.compact import Compact as Compact
from jprune.compaction.removal.compact import compact as compact
from jprune.compaction.removal.plan import LeafPlan as LeafPlan
from jprune.compaction.removal.plan import Left as Left
from jprune.compaction.removal.plan import Plan as Plan

__all__ = [
    "Certificate",
    "Compact",
    "Frozen",
    "Graph",
    "LeafPlan",
    "Left",
    "Plan",
    "Pool",
    "Product",
    "compact",
    "compare",
    "trace_units",
    "units",
]
