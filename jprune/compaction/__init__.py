"""Compaction."""
from jprune.compaction._graph import Graph as Graph
from jprune.compaction._graph import trace_units as trace_units
