"""Files that are there whole or not at all, and errors of writing that name them."""

import contextlib
import os
from collections.abc import Iterator
from pathlib import Path


@contextlib.contextmanager
def naming(path: str | os.PathLike[str]) -> Iterator[None]:
    """An OSError that comes from within names the file; a full disk does not do so by itself."""
    try:
        yield
    except OSError as error:
        raise OSError(error.errno, error.strerror, str(path)) from error


def write_whole(path: str | os.PathLike[str], content: str | bytes) -> None:
    """Writes a file so that a kill at any instant leaves the old content or the new, never a part.

    The content goes to ``<name>.tmp`` beside it, reaches the disk, and takes the name in one step.
    Folders that are missing are made. One process at a time may write a given path.

    Raises:
      OSError: with the name of the file, such as of a full disk.
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    beside = path.with_name(path.name + ".tmp")
    with naming(path):
        with beside.open("wb") as file:
            file.write(content.encode() if isinstance(content, str) else content)
            file.flush()
            os.fsync(file.fileno())
        beside.replace(path)
    # The new name is itself data of the folder: without this a power cut may forget it.
    folder = os.open(path.parent, os.O_RDONLY)
    try:
        os.fsync(folder)
    finally:
        os.close(folder)
