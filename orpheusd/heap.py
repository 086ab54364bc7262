"""What a process that serves does with its memory: large messages, and what the collector looks at."""

import ctypes
import gc
from contextlib import suppress

#: Blocks from this size on are mapped by themselves: far more than a small run allocates at a time.
LARGE_BLOCK_BYTES = 512 * 1024
#: What may be free at the end of the heap: less would be given back and taken again all the time.
TRIM_BYTES = 8 * 1024 * 1024

#: mallopt(3).
_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD = -1, -3


def give_back_large_blocks() -> None:
    """For the process that calls: what held a large message is the system's again when it is let go. Left to itself
    the library takes such blocks from its heap once it has seen some freed, where small ones between keep them.
    """
    with suppress(AttributeError):  # another C library has no such thing
        mallopt = ctypes.CDLL(None).mallopt
        mallopt(_M_MMAP_THRESHOLD, LARGE_BLOCK_BYTES)
        mallopt(_M_TRIM_THRESHOLD, TRIM_BYTES)


def spare_what_is_there() -> None:
    """For the process that calls, once it has all it will keep: the collector looks at none of it again. A look at the
    modules of a daemon holds everybody up for 10 ms, and for more beside somebody who keeps the caches busy."""
    gc.collect()
    gc.freeze()
