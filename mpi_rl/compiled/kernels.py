"""The compiled kernels: C functions that do at once what NumPy or torch do more slowly.

They are compiled when the package is installed, if there is a compiler, and say of which sources.
Where they are missing, or of other sources than the C files here, ``AVAILABLE`` is False: the
callers do the same in NumPy or torch, and ``check`` tells the user.
"""

import ctypes
import functools
import importlib.util
import sys
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from mpi_rl.compiled.sources import version
from mpi_rl.errors import UserError

NONE, STALE = "none", "stale"


def _load() -> ctypes.CDLL | None:
    spec = importlib.util.find_spec("mpi_rl.compiled._kernels")
    return ctypes.CDLL(spec.origin) if spec and spec.origin else None


def _version_of(library: ctypes.CDLL | None) -> str:
    """Return the library's version; STALE if it is not that of the C files."""
    if library is None:
        return NONE
    library.kernels_version.restype = ctypes.c_char_p
    found = library.kernels_version().decode()
    return found if found == version() else STALE


_LIBRARY = _load()
KERNELS = _version_of(_LIBRARY)
AVAILABLE = KERNELS not in (NONE, STALE)


@functools.cache
def check() -> None:
    """Raise UserError if the library is stale; say once, on stderr, if there is none."""
    if KERNELS == STALE:
        raise UserError(
            "the compiled kernels are of other sources than compiled/*.c: build them anew with make"
            " .venv/ready (or pip install -e .)"
        )
    if KERNELS == NONE:
        print(
            "mpi_rl: there are no compiled kernels; NumPy and torch do the same, more slowly. Where"
            " there is a C compiler, pip install -e . builds them",
            file=sys.stderr,
            flush=True,
        )


def compare(kernels: Sequence[str]) -> None:
    """Raise UserError if the ranks' ``KERNELS``, in their order, differ."""
    for rank, of_rank in enumerate(kernels):
        if of_rank != kernels[0]:
            raise UserError(
                f"rank {rank}'s compiled kernels are {of_rank}, but the server's are {kernels[0]}:"
                " nodes have different builds of mpi_rl; install the same on all"
            )


def bound(name: str, *arguments: np.ndarray | int) -> Callable[..., Any]:
    """Return C function ``name`` with its first arguments: arrays by address, int as size_t.

    What is left for each call are its last ones, float.
    """
    function, words = _function(name), [_as_c(argument) for argument in arguments]
    alive = arguments  # as long as their addresses are in use

    def call(*numbers: float) -> Any:
        assert alive
        return function(*words, *map(ctypes.c_float, numbers))

    return call


def start_threads(count: int) -> int:
    """Have ``count`` threads, this one among them, share long vectors; return how many there are.

    That is for update rules, and for ``mix`` and ``copy``; all of them sleep in between.
    """
    return int(_LIBRARY.start_threads(ctypes.c_size_t(count))) if AVAILABLE and _LIBRARY else 1


@functools.cache
def _function(name: str) -> Callable[..., Any]:
    """Return C function ``name``, for AVX-512 if there is one and the processor has that."""
    wide = getattr(_LIBRARY, f"{name}_avx512", None)
    return wide if wide and getattr(_LIBRARY, "has_avx512")() else getattr(_LIBRARY, name)


def _as_c(argument: np.ndarray | int) -> ctypes.c_void_p | ctypes.c_size_t:
    if isinstance(argument, np.ndarray):
        assert argument.flags.c_contiguous
        return ctypes.c_void_p(argument.ctypes.data)
    return ctypes.c_size_t(argument)
