"""Timing against peers, correctness first: `run_bench` makes a `Report`, which becomes a table, JSON, Markdown or a plot."""

from torchsmith.bench.files import check_ending, read, write
from torchsmith.bench.int8_sides import PEERS
from torchsmith.bench.report import Report, Row, merge, table
from torchsmith.bench.run import run_bench

__all__ = ["PEERS", "Report", "Row", "check_ending", "merge", "read", "run_bench", "table", "write"]
