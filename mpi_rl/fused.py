"""Calls into ``fused.c``: one pass over memory where NumPy needs several.

It is compiled when the package is installed, if there is a compiler. Where there was none,
``AVAILABLE`` is False, and the callers do the same in NumPy.
"""

import ctypes
import importlib.util
from collections.abc import Callable
from typing import Any

import numpy as np

PAGE = 4096  # bytes; vectors that one pass goes through should be apart in theirs


def _load() -> ctypes.CDLL | None:
    spec = importlib.util.find_spec("mpi_rl._fused")
    return ctypes.CDLL(spec.origin) if spec and spec.origin else None


_LIBRARY = _load()
AVAILABLE = _LIBRARY is not None


def bound(name: str, *arguments: np.ndarray | int) -> Callable[..., Any]:
    """Return C function ``name`` with its first arguments: arrays by address, int as size_t.

    What is left for each call are its last ones, float.
    """
    function, words = getattr(_LIBRARY, name), [_as_c(argument) for argument in arguments]
    alive = arguments  # as long as their addresses are in use

    def call(*numbers: float) -> Any:
        assert alive
        return function(*words, *map(ctypes.c_float, numbers))

    return call


def _as_c(argument: np.ndarray | int) -> ctypes.c_void_p | ctypes.c_size_t:
    if isinstance(argument, np.ndarray):
        assert argument.flags.c_contiguous
        return ctypes.c_void_p(argument.ctypes.data)
    return ctypes.c_size_t(argument)
