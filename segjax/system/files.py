"""Write files atomically, with errors that name them; take folder names literally."""

import contextlib
import glob
import os
import re
from collections.abc import Iterator
from pathlib import Path

from segjax.errors import UserError


def local_path(text: str) -> Path:
    """Return a path on this machine from its text, with `~` expanded.

    Raises:
      UserError: it is empty, the word None, a URL such as gs://bucket/run, not UTF-8, or of an
        unknown user.
    """
    if text in ("", "None"):
        raise UserError(f"expected a path, found {text!r}")
    if re.match(r"[A-Za-z][A-Za-z0-9+.-]*://", text):
        raise UserError(f"expected a path on this machine, found the URL {text}")
    try:
        text.encode()
    except UnicodeEncodeError:  # it could not be stored in JSON
        raise UserError(f"expected a path in UTF-8, found {text!r}") from None
    try:
        return Path(text).expanduser()
    except RuntimeError as error:
        raise UserError(f"~ of {text} has no home directory: set HOME") from error


@contextlib.contextmanager
def naming(path: str | os.PathLike[str]) -> Iterator[None]:
    """Add the file's name to any OSError raised inside: that of a full disk has none."""
    try:
        yield
    except OSError as error:
        raise OSError(error.errno, error.strerror, str(path)) from error


def write_whole(path: str | os.PathLike[str], content: str | bytes) -> None:
    """Write a file atomically: a kill at any time leaves the old content or the new.

    Write ``<name>.tmp`` beside it, sync it to disk, and rename it. Create missing folders. Only one
    process at a time may write a path.

    Raises:
      OSError: for example a full disk; names the file.
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(path.name + ".tmp")
    with naming(path):
        with partial.open("wb") as file:
            file.write(content.encode() if isinstance(content, str) else content)
            file.flush()
            os.fsync(file.fileno())
        partial.replace(path)
    # The rename changes the folder: without this a power cut may lose it.
    folder = os.open(path.parent, os.O_RDONLY)
    try:
        os.fsync(folder)
    finally:
        os.close(folder)


def take_folders_literally() -> None:
    """Let Orbax and TFDS work in folders whose names contain ``[``, ``]``, ``*`` or ``?``.

    Both list files by `epath.Path(folder).glob(pattern)`, in which etils, unlike pathlib, takes the
    name of the folder for a part of the pattern: they find nothing there, and only warn.
    """
    from etils.epath import gpath  # not needed by those who only write files

    listing = gpath.PosixGPath.glob
    if listing.__module__ != __name__:

        def literally(self: gpath.PosixGPath, pattern: str) -> Iterator[gpath.PosixGPath]:
            return listing(type(self)(glob.escape(os.fspath(self))), pattern)

        gpath.PosixGPath.glob = literally
