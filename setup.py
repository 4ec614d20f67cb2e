"""The one thing that setup.cfg cannot say: C files, built where there is a compiler."""

from setuptools import Extension, setup

SOURCES = ["mpi_rl/fused.c", "mpi_rl/conv.c"]
FLAGS = ["-O3", "-fno-math-errno", "-fno-trapping-math", "-fopenmp-simd"]
setup(ext_modules=[Extension("mpi_rl._fused", SOURCES, extra_compile_args=FLAGS, optional=True)])
