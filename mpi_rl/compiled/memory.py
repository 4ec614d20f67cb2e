"""Memory for the long vectors of one process: on large pages, where the system offers them."""

import mmap

import numpy as np

PAGE, LARGE_PAGE = 4096, 2 << 20  # bytes


def vector(size: int, place: int = 0) -> np.ndarray:
    """Return zeros, (size,) float32, that begin ``place`` quarters of a memory page into one.

    A processor that writes to one vector and then reads from another at the same place of a page
    first has to find out that they are not the same: that would cost a fifth of an update's time.
    With many ranks on a core, what is known of small pages is forgotten from update to update.
    """
    num_bytes, begin = 4 * size, place * PAGE // 4
    if num_bytes < LARGE_PAGE or not hasattr(mmap, "MADV_HUGEPAGE"):
        memory = np.zeros(num_bytes + begin + PAGE, np.uint8)
        begin += -memory.ctypes.data % PAGE
    else:
        room = mmap.mmap(-1, num_bytes + begin + 2 * LARGE_PAGE)
        try:
            room.madvise(mmap.MADV_HUGEPAGE)
        except OSError:  # a system without them
            pass
        memory = np.frombuffer(room, np.uint8)
        begin += -memory.ctypes.data % LARGE_PAGE
    return memory[begin : begin + num_bytes].view(np.float32)
