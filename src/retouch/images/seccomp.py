"""Forbid this process to start others, by a system-call filter (Linux, seccomp(2)).

A limit of processes (RLIMIT_NPROC) would do, but it counts threads too, and libde265 starts one.
"""

import ctypes
import errno
import os
import struct
import sys
from typing import Final, NamedTuple


class _Calls(NamedTuple):
    """Numbers of system calls (asm/unistd.h) after the architecture's audit number (linux/audit.h)."""

    audit: int
    clone: int
    clone3: int
    refused: tuple[int, ...]  # those of fork, vfork, execve and execveat that exist


_BY_MACHINE: Final = {
    "x86_64": _Calls(0xC000003E, 56, 435, (57, 58, 59, 322)),
    "aarch64": _Calls(0xC00000B7, 220, 435, (221, 281)),
}
_CLONE_THREAD: Final = 0x00010000
_X32_BIT: Final = 0x40000000
_PR_SET_NO_NEW_PRIVS, _PR_SET_SECCOMP, _MODE_FILTER = 38, 22, 2
# Fields of seccomp_data, instructions of classic BPF and what a filter returns (linux/seccomp.h).
_NUMBER, _ARCHITECTURE, _FLAGS = 0, 4, 16
_LOAD, _EQUAL, _ANY_BIT, _AT_LEAST, _RETURN = 0x20, 0x15, 0x45, 0x35, 0x06
_KILL, _FAIL, _ALLOW = 0x80000000, 0x00050000, 0x7FFF0000


def forbid_processes() -> bool:
    """Let fork, vfork, exec and clone, but for threads, fail with EPERM; return whether that was possible."""
    calls = _BY_MACHINE.get(os.uname().machine)
    if calls is None or sys.platform != "linux":
        return False
    refuse, no_such_call = _FAIL | errno.EPERM, _FAIL | errno.ENOSYS
    program = [
        (_LOAD, 0, 0, _ARCHITECTURE),
        (_EQUAL, 1, 0, calls.audit),
        (_RETURN, 0, 0, _KILL),
        (_LOAD, 0, 0, _NUMBER),
        (_AT_LEAST, 0, 1, _X32_BIT),  # the same calls by other numbers
        (_RETURN, 0, 0, _KILL),
        (_EQUAL, 0, 1, calls.clone3),  # its flags lie in memory; glibc then uses clone
        (_RETURN, 0, 0, no_such_call),
    ]
    for number in calls.refused:
        program += [(_EQUAL, 0, 1, number), (_RETURN, 0, 0, refuse)]
    program += [
        (_EQUAL, 0, 3, calls.clone),
        (_LOAD, 0, 0, _FLAGS),
        (_ANY_BIT, 1, 0, _CLONE_THREAD),
        (_RETURN, 0, 0, refuse),
        (_RETURN, 0, 0, _ALLOW),
    ]
    code = ctypes.create_string_buffer(b"".join(struct.pack("HBBI", *line) for line in program))
    head = struct.pack("HP", len(program), ctypes.addressof(code))
    prctl = ctypes.CDLL(None).prctl
    prctl.argtypes = [ctypes.c_int] + [ctypes.c_ulong] * 4
    if prctl(_PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0):
        return False
    filter_ = ctypes.create_string_buffer(head)
    return not prctl(_PR_SET_SECCOMP, _MODE_FILTER, ctypes.addressof(filter_), 0, 0)
