"""Builds every kernel of ext/ as vmcarve._ext.<name>; everything else is in pyproject.toml."""

import os
from pathlib import Path

from Cython.Build import cythonize
from setuptools import Extension, setup

# VMCARVE_DEBUG=1 builds the careful version: the kernel tests run on both (docs/architecture.md).
DEBUG = os.environ.get("VMCARVE_DEBUG") == "1"
DIRECTIVES = {
    "language_level": 3,
    "wraparound": False,
    "boundscheck": DEBUG,
    "initializedcheck": DEBUG,
    "cdivision": not DEBUG,
}
ARGUMENTS = [] if os.name == "nt" else ["-O3"]
HEADERS = sorted(path.as_posix() for path in Path("ext").glob("*.h"))

setup(
    ext_modules=cythonize(
        [
            Extension(f"vmcarve._ext.{path.stem}", [path.as_posix()], include_dirs=["ext"], depends=HEADERS,
                      extra_compile_args=ARGUMENTS)
            for path in sorted(Path("ext").glob("*.pyx"))
        ],
        compiler_directives=DIRECTIVES,
        build_dir="build/cython",
    ),
    options={"build_ext": {"parallel": os.cpu_count() or 1}},
)
