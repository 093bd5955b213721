"""How many events a process had not sent, where a kill does not reach it: a number in a file.

The file is mapped into memory, so a note costs no system call, and it outlives the process. Whoever
has the file locked is alive.
"""

from __future__ import annotations

import mmap
import os
import struct
from contextlib import suppress
from pathlib import Path

_NUMBER = struct.Struct("=Q")
_OURS: set[Path] = set()  # a second look at a file of this process would drop its lock


class PendingFile:
    """The number of this process, in a directory that all of this machine's may share.

    Args:
        directory: made when absent; on a local disk, or in memory.

    Raises:
        OSError: the directory cannot be written.
        ImportError: the system has no such locks (Windows).
    """

    def __init__(self, directory: Path) -> None:
        import fcntl

        directory.mkdir(mode=0o700, parents=True, exist_ok=True)
        while True:
            path = directory / f"{os.getpid()}-{os.urandom(8).hex()}.pending"
            file = os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL, 0o600)
            try:
                fcntl.lockf(file, fcntl.LOCK_EX)
                os.write(file, _NUMBER.pack(0))  # the room is taken now, not when memory is written
                if os.fstat(file).st_nlink:
                    break
            except OSError:
                path.unlink(missing_ok=True)
                os.close(file)
                raise
            os.close(file)  # another process took it for a dead one's, between the two calls
        _OURS.add(path)
        self._path, self._file = path, file
        self._memory = mmap.mmap(file, _NUMBER.size)

    def note(self, pending: int) -> None:
        """Keep the number."""
        _NUMBER.pack_into(self._memory, 0, pending)

    def close(self) -> None:
        """Take the file away, unless events are still pending."""
        (pending,) = _NUMBER.unpack_from(self._memory)
        if not pending:
            self._path.unlink(missing_ok=True)
        self.forget()

    def forget(self) -> None:
        """Close it without a word. In a fork, the parent's lock stays the parent's."""
        self._memory.close()
        os.close(self._file)
        _OURS.discard(self._path)


def take_lost(directory: Path) -> int:
    """Events that processes which are no more had not sent. Each is told once."""
    import fcntl

    lost = 0
    for path in sorted(directory.glob("*.pending")):
        if path in _OURS:
            continue
        with suppress(OSError):  # alive, told by another process, or not ours to read
            file = os.open(path, os.O_RDWR)
            try:
                fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                if os.fstat(file).st_nlink:
                    noted = os.read(file, _NUMBER.size)
                    path.unlink()
                    lost += _NUMBER.unpack(noted)[0] if len(noted) == _NUMBER.size else 0
            finally:
                os.close(file)
    return lost
