"""The compiled parts of hybrid; all else is in pyproject.toml.

Each is optional: without its headers hybrid is installed all the same, and the command that needs
it says what to install (hybrid/build/ext4/native.py).
"""

from __future__ import annotations

from glob import glob

from setuptools import Extension, setup

setup(
    ext_modules=[
        Extension(
            "hybrid.build.ext4._native",
            sources=sorted(glob("native/ext4/*.c")),
            depends=sorted(glob("native/ext4/*.h")),
            extra_compile_args=["-std=c11", "-O2", "-Wall", "-Wextra", "-Wno-cast-function-type"],
            define_macros=[("_FILE_OFFSET_BITS", "64")],
            libraries=["ext2fs", "com_err"],
            optional=True,
        ),
    ]
)
