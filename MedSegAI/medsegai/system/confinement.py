"""Confinement of a process before it reads an untrusted file: permanent, and without administrator rights.

On Linux it can then write only in one folder (Landlock), and can neither open a connection, start a program, end
another process nor change the rights of a file (seccomp); it also ends with the process that started it. Other
systems do not offer this without administrator rights; there it is only a separate process with limits
(`docs/trust.md`).

Sources: the kernel's `userspace-api/landlock.rst`, `seccomp_filter.rst`, and the headers `linux/landlock.h`,
`linux/seccomp.h`, `linux/audit.h`, `asm/unistd.h`.
"""

from __future__ import annotations

import ctypes
import os
import platform
import struct
import sys
from collections.abc import Sequence
from pathlib import Path

_PR_SET_PDEATHSIG, _PR_SET_NO_NEW_PRIVS = 1, 38
_SIGKILL = 9

_LANDLOCK_CREATE, _LANDLOCK_ADD, _LANDLOCK_RESTRICT = 444, 445, 446
_NAMES = (
    *(
        "EXECUTE",
        "WRITE_FILE",
        "READ_FILE",
        "READ_DIR",
        "REMOVE_DIR",
        "REMOVE_FILE",
        "MAKE_CHAR",
        "MAKE_DIR",
    ),
    *(
        "MAKE_REG",
        "MAKE_SOCK",
        "MAKE_FIFO",
        "MAKE_BLOCK",
        "MAKE_SYM",
        "REFER",
        "TRUNCATE",
        "IOCTL_DEV",
    ),
)
_ACCESS = {name: 1 << bit for bit, name in enumerate(_NAMES)}
_READING = ("READ_FILE", "READ_DIR")
_INSIDE = ("WRITE_FILE", "REMOVE_DIR", "REMOVE_FILE", "MAKE_DIR", "MAKE_REG", "REFER", "TRUNCATE")
_SINCE = {"REFER": 2, "TRUNCATE": 3, "IOCTL_DEV": 5}
"""The version of Landlock that introduced an access right; the others exist since the first."""

_DENIED = {
    "x86_64": (
        *(0xC000003E, 317, (41, 425, 59, 322, 101, 311, 62, 200, 234, 424)),
        (90, 91, 268, 452, 92, 93, 94, 260, 188, 189, 190, 197, 198, 199, 132, 235, 261, 280),
    ),
    "aarch64": (
        *(0xC00000B7, 277, (198, 425, 221, 281, 117, 271, 129, 130, 131, 424)),
        (52, 53, 452, 54, 55, 5, 6, 7, 14, 15, 16, 88),
    ),
}
"""By processor: its number in the kernel, the number of the call `seccomp`, and the numbers of socket,
io_uring_setup, execve, execveat, ptrace, process_vm_writev, kill, tkill, tgkill and pidfd_send_signal. Then the
calls that change rights, owners, attributes and times of files, which Landlock does not control: chmod, chown,
setxattr, utime and the like."""


def confine(folder: Path) -> list[str]:
    """Permanently give up writing outside `folder`, network access and access to other processes.

    Call it before other threads are started, because Landlock only holds for later threads.

    Returns:
        The restrictions that this system does not offer, in words; empty on Linux since 5.13.
    """
    if sys.platform != "linux":
        return ["writing only in one folder", "no network"]
    libc = ctypes.CDLL(None, use_errno=True)
    libc.prctl(_PR_SET_PDEATHSIG, _SIGKILL, 0, 0, 0)
    libc.prctl(_PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0)
    missing = [] if _keep_to(libc, folder) else ["writing only in one folder"]
    return missing if _deny_calls(libc) else [*missing, "no network"]


def limit(memory_bytes: int, seconds: int, file_bytes: int) -> None:
    """Limit the resources that this process may use from now on.

    Args:
        memory_bytes: the address space in addition to the present one.
        seconds: the processor time.
        file_bytes: the size of each file that it writes.
    """
    try:
        import resource
    except ImportError:  # Windows: only the time limit by the parent process remains
        return
    wanted = {
        resource.RLIMIT_CPU: seconds,
        resource.RLIMIT_FSIZE: file_bytes,
        resource.RLIMIT_CORE: 0,
    }
    taken = _address_space()
    if taken:
        wanted[resource.RLIMIT_AS] = taken + memory_bytes
    for kind, value in wanted.items():
        _, most = resource.getrlimit(kind)
        value = value if most == resource.RLIM_INFINITY else min(value, most)
        resource.setrlimit(kind, (value, value))


def _address_space() -> int:
    """Return the bytes of address space in use; 0 if the system does not report it."""
    try:
        pages = int(Path("/proc/self/statm").read_text(encoding="ascii").split()[0])
    except (OSError, ValueError, IndexError):
        return 0
    return pages * os.sysconf("SC_PAGE_SIZE")


def _keep_to(libc: ctypes.CDLL, folder: Path) -> bool:
    """Let this thread, and later ones of it, write only in `folder`; return whether Landlock is available."""
    version = libc.syscall(_LANDLOCK_CREATE, None, 0, 1)
    if version < 1:
        return False
    known = {name: bit for name, bit in _ACCESS.items() if _SINCE.get(name, 1) <= version}
    handled = sum(bit for name, bit in known.items() if name not in _READING)
    # TCP sockets since version 4; signals and abstract sockets since 6.
    fields = [handled, 3, 3][: 1 if version < 4 else 2 if version < 6 else 3]
    rules = struct.pack(f"={len(fields)}Q", *fields)
    ruleset = libc.syscall(_LANDLOCK_CREATE, rules, len(rules), 0)
    if ruleset < 0:
        return False
    inside = sum(known.get(name, 0) for name in _INSIDE)
    places = ((folder, inside), (Path(os.devnull), known["WRITE_FILE"]))
    done = all(_allow(libc, ruleset, place, access) for place, access in places)
    done = done and libc.syscall(_LANDLOCK_RESTRICT, ruleset, 0) == 0
    os.close(ruleset)
    return done


def _allow(libc: ctypes.CDLL, ruleset: int, place: Path, access: int) -> bool:
    descriptor = os.open(place, getattr(os, "O_PATH", 0) | os.O_CLOEXEC)
    try:
        rule = struct.pack("=Qi", access, descriptor)
        return bool(libc.syscall(_LANDLOCK_ADD, ruleset, 1, rule, 0) == 0)
    finally:
        os.close(descriptor)


def _deny_calls(libc: ctypes.CDLL) -> bool:
    """Make the kernel deny the calls in `_DENIED`; return whether it does."""
    if platform.machine() not in _DENIED:
        return False
    processor, seccomp, *denied_calls = _DENIED[platform.machine()]
    calls = [*denied_calls[0], *denied_calls[1]]
    program = _filter(processor, calls)
    packed = ctypes.create_string_buffer(b"".join(struct.pack("=HBBI", *step) for step in program))
    described = struct.pack("=H6xQ", len(program), ctypes.addressof(packed))
    return bool(libc.syscall(seccomp, 1, 1, described) == 0)


def _filter(processor: int, calls: Sequence[int]) -> list[tuple[int, int, int, int]]:
    """Return the steps of a filter that denies calls; each jump has the number of steps to skip."""
    load, if_equal, if_at_least, give = 0x20, 0x15, 0x35, 0x06
    denied, allowed = 0x00050001, 0x7FFF0000
    deny = len(calls) + 5  # the last step
    return [
        (load, 0, 0, 4),  # the processor of the call
        (if_equal, 0, deny - 2, processor),
        (load, 0, 0, 0),  # the number of the call
        (if_at_least, deny - 4, 0, 0x40000000),  # numbers of x32 are above
        *((if_equal, deny - 5 - place, 0, call) for place, call in enumerate(calls)),
        (give, 0, 0, allowed),
        (give, 0, 0, denied),
    ]
