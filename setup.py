"""The one thing that setup.cfg cannot say: a C file, built where there is a compiler."""

from setuptools import Extension, setup

FLAGS = ["-O3", "-fno-math-errno", "-fno-trapping-math"]
setup(
    ext_modules=[
        Extension("mpi_rl._fused", ["mpi_rl/fused.c"], extra_compile_args=FLAGS, optional=True)
    ]
)
