"""What the player believes of an SM of sm_90: the one table of it, in cycles.

Stalls between instructions of fixed latency are ptxas's own and stand in the machine code; so does
the distance of HMMA that depend on each other. Here is what the code leaves to scoreboards.
"""

from __future__ import annotations

import re
from typing import NamedTuple


class Latency(NamedTuple):
    """From issue: until the result is there, and until the operands have been read."""

    pattern: str  # of the operation, at its start
    result: int
    operands: int
    source: str


ESTIMATE = "estimate, until `python -m benchmarks micro` has measured it"
PUBLISHED = "Luo et al. 2024 (arXiv 2402.13499), rounded"

# The first that fits counts.
LATENCIES = (
    Latency(r"LDSM", 33, 10, "estimate: LDS and 3 for the matrices"),
    Latency(r"LDS.*\.128", 34, 10, PUBLISHED),
    Latency(r"LDS", 30, 10, PUBLISHED),
    Latency(r"LDG.*\.STRONG", 0, 14, "a poll: waiting for others is not the warp's own time"),
    Latency(r"LDGSTS|LDGDEPBAR", 14, 14, ESTIMATE),
    Latency(r"LDG|LD\.", 600, 14, "device memory: Luo et al. 2024 (arXiv 2402.13499), rounded"),
    Latency(r"U?LDC", 26, 26, ESTIMATE),
    Latency(r"S2U?R|CS2R\.", 20, 20, ESTIMATE),
    Latency(r"MUFU", 18, 6, "tanh.approx: docs of limits, 16 a clock and SM"),
    Latency(r"SYNCS", 20, 12, ESTIMATE),
    Latency(r"STS|STL", 12, 12, ESTIMATE),
    Latency(r"STAS|STG|ST\.", 14, 14, ESTIMATE),
    Latency(r"BAR", 20, 20, ESTIMATE),
    Latency(r"", 20, 20, ESTIMATE),  # SHFL, VOTE, conversions, FP64, R2UR ...
)

TAKEN_BRANCH = 4  # beyond the stall: estimate
DEPENDENCY_BARRIER = 4  # DEPBAR of copies that are long there: estimate
EXCHANGE = 265  # st.async to a peer until its waiting warp goes on: estimate

_COMPILED = [(re.compile(row.pattern), row) for row in LATENCIES]


def latency_of(operation: str) -> Latency:
    """The row of an operation as nvdisasm names it, LDS.128 for one."""
    return next(row for pattern, row in _COMPILED if pattern.match(operation))
