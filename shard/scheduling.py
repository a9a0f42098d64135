"""Threads that searches wait for run as soon as they wake."""

from __future__ import annotations

import contextlib
import ctypes
import os
import platform
import struct

SLICE_NANOSECONDS = 200_000
_SYSCALLS = {"x86_64": 314, "aarch64": 274}
_ATTRIBUTES = struct.Struct("=IIQiIQQQ")
_RESET_ON_FORK = 1


def ask_for_short_slices() -> None:
    """Let this thread take a core from one that computes, as soon as it has something to do.

    Of threads with an equal claim to a core, Linux 6.12 and later runs the one that asks for the
    shortest slice, and lets it interrupt the others (`sched_setattr`, EEVDF). It gets no more of
    the core's time than otherwise. Older kernels, and other systems, go on as they are; threads and
    processes that this thread starts do not inherit it.
    """
    number = _SYSCALLS.get(platform.machine())
    if platform.system() != "Linux" or number is None:
        return
    nice = os.getpriority(os.PRIO_PROCESS, 0)
    attributes = _ATTRIBUTES.pack(
        _ATTRIBUTES.size, 0, _RESET_ON_FORK, nice, 0, SLICE_NANOSECONDS, 0, 0
    )
    with contextlib.suppress(AttributeError):
        ctypes.CDLL(None).syscall(number, 0, attributes, 0)


def leave_cores_to_others() -> None:
    """Let this thread run on cores that nobody else wants.

    A thread that merely has a high nice value keeps its core when another wakes, which then waits
    or moves; one with this policy counts as if it were not there (`SCHED_IDLE`, Linux).
    """
    if hasattr(os, "SCHED_IDLE"):
        os.sched_setscheduler(0, os.SCHED_IDLE, os.sched_param(0))
