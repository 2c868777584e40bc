"""Two models side by side: where a compressed graph departs from the original, and why."""

from edgecompress.comparison.channels import ChannelUse
from edgecompress.comparison.nodes import NodeError, compare_nodes, counterparts
from edgecompress.comparison.ranges import RangeUse
from edgecompress.comparison.sweep import Findings, diagnose

__all__ = [
    "ChannelUse",
    "Findings",
    "NodeError",
    "RangeUse",
    "compare_nodes",
    "counterparts",
    "diagnose",
]
