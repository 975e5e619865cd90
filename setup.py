"""The compiled part of hybrid; all else is in pyproject.toml.

Optional: without a C compiler or Python's headers hybrid is installed all the same, and runs the
same blocks in Python (hybrid/core/zblocks.py). It links to no library but libc.
"""

from __future__ import annotations

from glob import glob

from setuptools import Extension, setup

setup(
    ext_modules=[
        Extension(
            "hybrid.core._zblocks",
            sources=sorted(glob("native/*.c")),
            depends=sorted(glob("native/*.h")),
            extra_compile_args=["-std=c11", "-O3", "-Wall", "-Wextra", "-fvisibility=hidden"],
            libraries=["dl", "pthread"],
            optional=True,
        )
    ]
)
