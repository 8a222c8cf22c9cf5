"""Builds the kernel in C where there are a compiler and Python's headers; the package is whole without, only slower."""

import sys

from setuptools import Extension, setup

# -fno-wrapv: Python's own flags let int64_t wrap around, which costs a loop over columns up to a third
flags = [] if sys.platform == "win32" else ["-O3", "-pthread", "-Wno-psabi", "-fno-wrapv", "-fvisibility=hidden"]
native = Extension(
    "manual_bptt.kernels._native",
    ["manual_bptt/kernels/native.c", "manual_bptt/kernels/binding.c"],
    depends=["manual_bptt/kernels/native.h"],
    extra_compile_args=flags,
    extra_link_args=[] if sys.platform == "win32" else ["-pthread"],
    optional=True,
)
setup(ext_modules=[native])
