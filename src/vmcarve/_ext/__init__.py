"""Compiled kernels, built from ext/: one kernel a module, no policy."""
