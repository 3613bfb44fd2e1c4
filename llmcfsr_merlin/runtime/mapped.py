"""Memory-mapped files: how they are going to be read."""

import ctypes
import mmap


def read_at_random(address: int, size: int) -> None:
    """Tell the system that single rows of this memory are read, in no order.

    For a row that is not in memory it otherwise reads 128 KB from the disk, and where memory is limited these drive out
    what every request needs. Does nothing where it cannot be told. address, size: bytes of this process, mapped from a
    file.
    """
    advice = getattr(mmap, "MADV_RANDOM", None)
    if advice is None or not size:
        return
    start = address // mmap.PAGESIZE * mmap.PAGESIZE
    ctypes.CDLL(None).madvise(ctypes.c_void_p(start), ctypes.c_size_t(address + size - start), advice)
