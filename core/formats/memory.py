"""A bound on what a library takes that has none of its own (arrow: intake).

Effects  lowers the soft RLIMIT_DATA of this process for one call, one call at a time, and puts it back
Units    bytes
"""

import re
import resource
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

_STATUS = Path("/proc/self/status")
_DATA = re.compile(rb"^VmData:\s+(\d+) kB$", re.MULTILINE)
_ONE_AT_A_TIME = threading.Lock()  # of two that overlap the second would put back what the first had lowered


@contextmanager
def memory_bound(extra: int) -> Iterator[None]:
    """Within, this process gets at most `extra` bytes more of private memory; whoever asks for more fails.

    The kernel counts by process: what other threads take meanwhile counts too. Without /proc there is no bound.

    Raises:
        MemoryError: by whatever was asked for too much, if it says so that way.
    """
    found = _DATA.search(_STATUS.read_bytes()) if _STATUS.exists() else None
    if found is None:
        yield
        return
    with _ONE_AT_A_TIME:
        soft, hard = resource.getrlimit(resource.RLIMIT_DATA)
        most = int(found[1]) * 1024 + max(extra, 0)
        if soft != resource.RLIM_INFINITY:
            most = min(most, soft)
        resource.setrlimit(resource.RLIMIT_DATA, (most, hard))
        try:
            yield
        finally:
            resource.setrlimit(resource.RLIMIT_DATA, (soft, hard))
