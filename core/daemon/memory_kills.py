"""How often the kernel has killed for want of memory: on the machine and in our cgroup (beside all arrows).

Reads    /proc/vmstat, /sys/fs/cgroup/<ours>/memory.events          Errors  none: what cannot be read counts 0
"""

from pathlib import Path


def memory_kills() -> int:
    """The sum of both counters. It only ever rises: compare two readings."""
    return _counter(Path("/proc/vmstat"), "oom_kill") + _counter(_cgroup() / "memory.events", "oom_kill")


def _cgroup() -> Path:
    try:
        line = Path("/proc/self/cgroup").read_text().splitlines()[-1]
    except (OSError, IndexError):
        return Path("/sys/fs/cgroup")
    return Path("/sys/fs/cgroup") / line.rpartition(":")[2].lstrip("/")


def _counter(path: Path, name: str) -> int:
    try:
        words = [line.split() for line in path.read_text().splitlines()]
    except OSError:
        return 0
    return next((int(value) for key, value in (w for w in words if len(w) == 2) if key == name), 0)
