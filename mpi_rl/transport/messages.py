"""What travels between server and workers: tags, and the records that headers and replies are."""

import enum
from typing import Any

import numpy as np

from mpi_rl.transport.metrics import REPORTED

SERVER = 0  # its rank; worker w (0-based) is rank w + 1


class Tag(enum.IntEnum):
    """Message tags: each has one sender, one receiver and one payload."""

    # worker -> server: header, and unless it goes WITHOUT_PARAMS, grads if memory is not shared
    PUSH = 1
    REPLY = 2  # server -> worker: reply, and likewise params
    HURRY = 3  # server -> worker, once at most before the last reply: nothing


class Kind(enum.IntEnum):
    """What a worker's header announces."""

    JOIN = 0  # ready to start: send parameters
    PUSH = 1  # here is a gradient, or a group's parameters
    REPORT = 3  # here is only what was done; no parameters are wanted
    READY = 4  # parked until the server answers; no parameters are wanted
    FAILED = 2  # an exception ended this worker


WITHOUT_PARAMS = (Kind.REPORT, Kind.READY)  # and without their reply's


class Command(enum.IntEnum):
    """What the server's reply tells a worker to do."""

    CONTINUE = 0
    STOP = 1
    PARK = 2  # leave, and be ready again


REPLY = np.dtype(
    [
        ("version", "i8"),  # updates applied to the parameters sent along
        ("step", "i8"),  # of the run
        ("command", "i8"),
        ("resumed", "i8"),  # 1: rng_state is where the worker's random stream goes on
        ("rng_state", "u8", 6),
    ]
)


def header_dtype(max_episodes: int) -> np.dtype:
    """Return the record that a worker sends, with room for ``max_episodes`` finished episodes."""
    return np.dtype(
        [
            ("kind", "i8"),
            ("worker", "i8"),  # 0-based
            ("version", "i8"),  # of the parameters that the gradient was taken at
            *((metric.name, metric.kind) for metric in REPORTED),
            ("rng_state", "u8", 6),  # the worker's random stream after this rollout
            ("episode_returns", "f8", max_episodes),  # of the num_episodes that have ended
            ("episode_lengths", "i8", max_episodes),
        ]
    )


_FIRST = header_dtype(0).names.index(REPORTED[0].name)  # type: ignore[union-attr]


def reported(header: np.void) -> tuple[float, ...]:
    """Return a header's REPORTED numbers, in that order, as Python's own."""
    fields: Any = header.item()
    return fields[_FIRST : _FIRST + len(REPORTED)]
