"""Locks between processes: locked files, released when their process ends for any reason."""

import fcntl
import time
from pathlib import Path
from typing import IO


def acquire(path: Path, *, wait: float | None = 0.0) -> IO[str] | None:
    """Lock a file, created if missing.

    Args:
      path: the file; its folder must exist.
      wait: seconds to wait for another holder; None: without limit.

    Returns:
      The open file, locked until it is closed, or None if another process, or another part of this
      one, holds the lock.

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
    """Return whether another process, or another part of this one, holds a file's lock."""
    try:
        with path.open() as file:
            fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except FileNotFoundError:
        return False
    except BlockingIOError:
        return True
    return False
