"""Compaction."""
from jprune.compaction._graph import Graph as Graph
from jprune.compaction._graph import trace_units as trace_units
from jprune.compaction._compact import Certificate as Certificate
from jprune.compaction._compact import Compact as Compact
from jprune.compaction._compact import compact as compact
from jprune.compaction._plan import Plan as Plan
