"""The compiled parts of hybrid; all else is in pyproject.toml.

Both are optional: without a C compiler or Python's headers hybrid is installed all the same.
Blocks are then run in Python (hybrid/core/zblocks.py), which is slower; conversion to ext4, which
needs the headers of libext2fs too, says what to install (hybrid/build/ext4/native.py).
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
        ),
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
