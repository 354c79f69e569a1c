"""cpu: which paths of the kernels this machine can run, by name, the fastest last.

A kernel that has several paths takes the number of one; `PATHS[name]` is that number. See ext/cpu.h.
"""

cdef extern from "cpu.h":
    int path_is_here(int path) nogil

PATHS = {name: path for path, name in enumerate(("plain", "avx2", "avx512", "neon")) if path_is_here(path)}
