"""Reports what a model costs, and how long it takes."""

from jprune.report._cost import Cost as Cost
from jprune.report._cost import Count as Count
from jprune.report._cost import cost as cost
from jprune.report._speed import Speed as Speed
from jprune.report._speed import Timing as Timing
from jprune.report._speed import latency as latency
from jprune.report._speed import speed as speed

__all__ = ["Cost", "Count", "Speed", "Timing", "cost", "latency", "speed"]
