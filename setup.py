"""Build the compiled core. Everything else about the package stands in pyproject.toml."""

import os
from pathlib import Path

import numpy
from Cython.Build import cythonize
from setuptools import Extension, setup

# SMLT_DEBUG_BUILD=1 checks every index and keeps symbols; CI runs the suite on such a build once.
DEBUG = os.environ.get("SMLT_DEBUG_BUILD") == "1"

DIRECTIVES = {
    "language_level": 3,
    "embedsignature": True,
    "wraparound": False,
    "cdivision": True,
    "freethreading_compatible": True,
    "boundscheck": DEBUG,
    "initializedcheck": DEBUG,
}

# Never -march=native or -ffast-math: the function's CPU is not the builder's, NaNs must survive.
# -ffp-contract=off keeps a multiply-add from changing bits between architectures.
# -g0: Python's own flags ask for symbols, which outweigh the code in every function's package.
RELEASE_FLAGS = ["-O3", "-g0", "-ffp-contract=off", "-fno-math-errno", "-Wno-unused-function"]
DEBUG_FLAGS = ["-O0", "-g", "-ffp-contract=off", "-Wno-unused-function"]


C_HEADERS = [str(path) for path in sorted(Path("smlt/_core").glob("*.h"))]


def extension(name: str) -> Extension:
    return Extension(
        f"smlt._core.{name}",
        [f"smlt/_core/{name}.pyx"],
        depends=C_HEADERS,
        include_dirs=[numpy.get_include()],
        define_macros=[("NPY_NO_DEPRECATED_API", "NPY_2_0_API_VERSION")],
        extra_compile_args=DEBUG_FLAGS if DEBUG else RELEASE_FLAGS,
    )


setup(
    ext_modules=cythonize(
        [extension(path.stem) for path in sorted(Path("smlt/_core").glob("*.pyx"))],
        compiler_directives=DIRECTIVES,
    ),
    options={"build_ext": {"parallel": os.cpu_count() or 1}},
)
