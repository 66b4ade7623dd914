"""Sharded stores of events: layout, sources, writing, reading."""

from sciflow.data.layout import Layout
from sciflow.data.shard import shard
from sciflow.data.split import SplitRule
from sciflow.data.statistics import Statistics
from sciflow.data.store import Split, Store, open_store

__all__ = ["Layout", "Split", "SplitRule", "Statistics", "Store", "open_store", "shard"]
