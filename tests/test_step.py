"""The old address of shared parts, for test files that still import them from here."""

from benchmarks.parity import largest_difference, small, trace
from tests.tiny import TRACE_TOLERANCE as TOLERANCE

__all__ = ["TOLERANCE", "largest_difference", "small", "trace"]
