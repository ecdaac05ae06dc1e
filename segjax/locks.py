"""Locks between processes: held files, freed with the process that holds them, however it ends."""

import fcntl
import time
from pathlib import Path
from typing import IO


def acquire(path: Path, *, wait: float | None = 0.0) -> IO[str] | None:
    """Lock a file, which is made where it is not there yet.

    Args:
      path: the file; its folder exists.
      wait: seconds to wait for another holder; None: as long as it takes.

    Returns:
      The open file, locked until it is closed, or None where another process, or another part of
      this one, holds it.

    Raises:
      OSError: the file cannot be written or locked.
    """
    file = path.open("w")
    try:
        if wait is None:
            fcntl.flock(file, fcntl.LOCK_EX)
            return file
        deadline = time.monotonic() + wait
        while True:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                return file
            except BlockingIOError:
                if time.monotonic() >= deadline:
                    file.close()
                    return None
                time.sleep(0.02)
    except OSError:
        file.close()
        raise


def is_held(path: Path) -> bool:
    """Return whether another process, or another part of this one, holds the lock of a file."""
    try:
        with path.open() as file:
            fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except FileNotFoundError:
        return False
    except BlockingIOError:
        return True
    return False
