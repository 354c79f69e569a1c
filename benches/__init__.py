"""Benches by question. Each checks its result, and compares with a limit or a peer that is timed in the same run."""
