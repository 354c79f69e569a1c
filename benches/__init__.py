"""Benches by question. Each one checks its result, and compares with a limit or a peer that is timed in the same run."""
