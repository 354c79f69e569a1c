"""What may be claimed of a byte (docs/architecture.md)."""

from __future__ import annotations

PROVEN = "proven"  # a checksum, a decoded stream, a pin or a verified table covers these very bytes
SUPPORTED = "supported"  # a host remnant that content agrees with, or between neighbouring pins of one delta
GUESSED = "guessed"  # continuity alone
MISSING = "missing"  # not found, unreadable or overwritten: written as a hole
ZERO = "zero"  # the container (or the host file) itself says zero / unallocated
PARENT = "parent"  # to be read from the parent disk of a snapshot chain
GRADES = (PROVEN, SUPPORTED, GUESSED, MISSING, ZERO, PARENT)
