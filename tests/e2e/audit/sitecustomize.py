"""Appends each file that a Python process opens for writing to the file in AUDIT_FILE, one a line.

On a process's PYTHONPATH it is imported first. Files opened by C code are not seen.
"""

import os
import sys

_FILE = os.environ.get("AUDIT_FILE")
_WRITES = os.O_WRONLY | os.O_RDWR | os.O_CREAT | os.O_TRUNC | os.O_APPEND
_OTHERS = {"os.mkdir", "os.rename", "os.link", "os.symlink", "os.truncate", "sqlite3.connect"}

if _FILE:
    _note = os.open(_FILE, os.O_WRONLY | os.O_CREAT | os.O_APPEND)

    def _hear(event: str, arguments: tuple[object, ...]) -> None:
        if event in _OTHERS:
            opens = True
        elif event == "open":  # a descriptor: the file is open already
            path, _, flags = arguments
            opens = isinstance(flags, int) and bool(flags & _WRITES) and not isinstance(path, int)
        else:
            return
        if opens and arguments[0] != os.devnull:
            os.write(_note, f"{event} {arguments[0]!s}\n".encode())

    sys.addaudithook(_hear)
