"""The resources that this process may use, including the limits of its container.

Linux keeps the limits of containers and batch systems in control groups ("Control Group v2" in the kernel's
documentation, and v1, which older systems mount). The limits of every group above this process hold for it.
"""

from __future__ import annotations

import contextlib
import ctypes
import math
import os
import sys
from collections.abc import Iterator
from pathlib import Path

CONTROL_GROUPS = Path("/sys/fs/cgroup")
OWN_GROUPS = Path("/proc/self/cgroup")
MEMORY = Path("/proc/meminfo")


def usable_cores() -> int:
    """Return how many processors this process may keep busy, at least 1; a part of one counts as one."""
    found = [float(os.cpu_count() or 1)]
    if hasattr(os, "sched_getaffinity"):
        found.append(float(len(os.sched_getaffinity(0))))
    for group in _groups("cpu"):
        quota, period = _first(group / "cpu.max"), _second(group / "cpu.max")
        if quota is None:
            quota, period = _first(group / "cpu.cfs_quota_us"), _first(group / "cpu.cfs_period_us")
        if quota and period and quota > 0:
            found.append(quota / period)
    return max(1, math.ceil(min(found)))


def wait_without_spinning() -> None:
    """Make threads of OpenMP sleep while they wait for each other, after a moment.

    Threads that spin take the processors from other programs, and from the thread that they wait for: where others
    kept the processors busy, a head took more than twice as long (docs/performance/speed.md). GCC's OpenMP spins a
    thousand times first, without which a head took a fifth longer on free processors. Call it before torch is
    imported. What the user has set stays.
    """
    if "OMP_WAIT_POLICY" not in os.environ:
        os.environ["OMP_WAIT_POLICY"] = "PASSIVE"
        os.environ.setdefault("GOMP_SPINCOUNT", "1000")


def total_memory() -> int | None:
    """Return the bytes of memory that this process can have at most; None if the system does not report it."""
    limits = [limit for limit, _ in _memory_limits()]
    machine = _machine_memory("MemTotal")
    return min([*limits, *([] if machine is None else [machine])], default=None)


def peak_memory_mb() -> float:
    """Return the largest resident memory of this program until now, in MB; 0 if the system does not report it.

    On Linux, `ru_maxrss` is at least that of the parent process, such as Slicer, so the kernel's own count is
    preferred.
    """
    if sys.platform == "win32":
        return 0.0
    with contextlib.suppress(OSError):
        for line in Path("/proc/self/status").read_text(encoding="ascii").splitlines():
            if line.startswith("VmHWM:"):
                return int(line.split()[1]) / 1024
    import resource

    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak / (1024 * 1024 if sys.platform == "darwin" else 1024)


def available_memory() -> int | None:
    """Return the bytes that a new job could use without swapping; None if the system does not report it."""
    if sys.platform == "win32":
        return _windows_memory()
    left = [max(limit - used, 0) for limit, used in _memory_limits()]
    machine = _machine_memory("MemAvailable")
    return min([*left, *([] if machine is None else [machine])], default=None)


def _memory_limits() -> Iterator[tuple[int, int]]:
    """Yield limit and use, in bytes, of each group that has a limit. Cached bytes do not count as used."""
    for group in _groups("memory"):
        limit, used = _first(group / "memory.max"), _first(group / "memory.current")
        if limit is None:
            limit = _first(group / "memory.limit_in_bytes")
            used = _first(group / "memory.usage_in_bytes")
        if limit is not None and used is not None:
            yield int(limit), int(used) - _cached(group)


def _groups(controller: str) -> Iterator[Path]:
    """Yield the groups of this process that can have limits of `controller`, and all groups above them.

    In a container the path of the group may be that of the host; then the limits are at the root.
    """
    try:
        lines = OWN_GROUPS.read_text(encoding="ascii", errors="replace").splitlines()
    except OSError:
        return
    for line in lines:
        _, controllers, path = line.split(":", 2)
        if controllers and controller not in controllers.split(","):
            continue
        root = CONTROL_GROUPS / controllers if controllers else CONTROL_GROUPS
        own = root / path.lstrip("/")
        yield from (folder for folder in (own, *own.parents) if folder.is_relative_to(root))


def _cached(group: Path) -> int:
    """Return the bytes of cached files, which the kernel frees when memory is needed."""
    try:
        lines = (group / "memory.stat").read_text(encoding="ascii").splitlines()
        sizes = dict(line.split(" ", 1) for line in lines)
        return int(sizes.get("total_inactive_file") or sizes.get("inactive_file") or 0)
    except (OSError, ValueError):
        return 0


def _first(file: Path) -> float | None:
    """Return the first number in a file; None if it says "max" or the file does not exist."""
    return _number(file, 0)


def _second(file: Path) -> float | None:
    return _number(file, 1)


def _number(file: Path, place: int) -> float | None:
    try:
        return float(file.read_text(encoding="ascii").split()[place])
    except (OSError, ValueError, IndexError):
        return None


def _machine_memory(name: str) -> int | None:
    """Return a line of /proc/meminfo in bytes; if there is none, the whole memory that the system reports."""
    try:
        lines = MEMORY.read_text(encoding="ascii").splitlines()
        sizes = {key: int(rest.split()[0]) for key, rest in (line.split(":") for line in lines)}
        return sizes[name] * 1024
    except (OSError, KeyError, ValueError):
        return _physical_memory() if name == "MemTotal" else None


def _physical_memory() -> int | None:
    try:
        return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    except (AttributeError, OSError, ValueError):
        return None


def _windows_memory() -> int | None:
    """Return `ullAvailPhys` of GlobalMemoryStatusEx."""
    if sys.platform != "win32":
        return None
    status = (ctypes.c_uint64 * 8)()
    ctypes.cast(status, ctypes.POINTER(ctypes.c_uint32))[0] = ctypes.sizeof(status)
    ctypes.windll.kernel32.GlobalMemoryStatusEx(status)
    return int(status[2])
