"""The one thing that setup.cfg cannot say: C files, built where there is a compiler."""

from pathlib import Path
from runpy import run_path

from setuptools import Extension, setup

COMPILED = run_path(str(Path(__file__).parent / "mpi_rl" / "compiled" / "sources.py"))
FLAGS = ["-O3", "-fno-math-errno", "-fno-trapping-math", "-fopenmp-simd"]
setup(
    ext_modules=[
        Extension(
            "mpi_rl.compiled._kernels",
            [f"mpi_rl/compiled/{path.name}" for path in COMPILED["sources"]()],
            define_macros=[("KERNELS_VERSION", f'"{COMPILED["version"]()}"')],
            extra_compile_args=FLAGS,
            optional=True,
        )
    ]
)
