"""A clock that jumps under a confined server, while it runs.

A small library stands before the C library's clock and adds what a file says. The dynamic loader
is told of it on its own command line: LD_PRELOAD would not survive, because a server starts again
without it. The machine's own clock is left alone.
"""

from __future__ import annotations

import mmap
import os
import shutil
import struct
import subprocess
import sys
from pathlib import Path

LOADER = Path("/lib64/ld-linux-x86-64.so.2")
SOURCE = r"""
#define _GNU_SOURCE
#include <dlfcn.h>
#include <fcntl.h>
#include <sys/mman.h>
#include <sys/time.h>
#include <time.h>

static const volatile long long *offset;
static int (*real)(clockid_t, struct timespec *);

__attribute__((constructor)) static void begin(void) {
  int file = open(OFFSET, O_RDONLY | O_CLOEXEC);
  void *where = mmap(0, 8, PROT_READ, MAP_SHARED, file, 0);
  if (where != MAP_FAILED) offset = where;
  real = dlsym(RTLD_NEXT, "clock_gettime");
}

int clock_gettime(clockid_t clock, struct timespec *now) {
  int result = real(clock, now);
  if (result == 0 && clock == CLOCK_REALTIME && offset) now->tv_sec += *offset;
  return result;
}

time_t time(time_t *out) {
  struct timespec now;
  clock_gettime(CLOCK_REALTIME, &now);
  if (out) *out = now.tv_sec;
  return now.tv_sec;
}

int gettimeofday(struct timeval *now, void *zone) {
  struct timespec precise;
  (void)zone;
  clock_gettime(CLOCK_REALTIME, &precise);
  now->tv_sec = precise.tv_sec;
  now->tv_usec = precise.tv_nsec / 1000;
  return 0;
}
"""


class Clock:
    """Sets the clock of servers that are started with `prefix`.

    Args:
        folder: For the library, and the file that says by how much.
    """

    def __init__(self, folder: Path) -> None:
        offset, source, library = (folder / name for name in ("offset", "clock.c", "clock.so"))
        offset.write_bytes(bytes(8))
        source.write_text(SOURCE)
        command = ["gcc", "-shared", "-fPIC", "-O1", f'-DOFFSET="{offset}"', "-o", library, source]
        subprocess.run([*command, "-ldl"], check=True)
        with offset.open("r+b") as file:
            self._offset = mmap.mmap(file.fileno(), 8)
        # As it is called, so that it finds its virtual environment.
        called = ["--argv0", sys.executable, "--preload", str(library)]
        self.prefix = (str(LOADER), *called, os.path.realpath(sys.executable), "-I")

    def jump(self, seconds: int) -> None:
        """Let the servers' clock be so far ahead of the machine's."""
        self._offset[:] = struct.pack("=q", seconds)

    @staticmethod
    def is_possible() -> bool:
        """Return whether this machine has what it takes."""
        return LOADER.exists() and shutil.which("gcc") is not None
