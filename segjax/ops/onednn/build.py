"""Build `kernels.cc` once, cache the library, and load it into XLA.

This needs a C++ compiler and oneDNN 3 with its headers, from `pip install segjax[onednn]` (Linux,
x86-64), the system, or the folder SEGJAX_ONEDNN_DIR (with include/ and lib/). If anything is
missing, one log line says so and XLA computes instead. SEGJAX_ONEDNN=off never uses the kernels;
with SEGJAX_ONEDNN=on it is an error if they cannot be used.

JAX is imported only where it is needed, so that importing this module is fast.
"""

import ctypes
import dataclasses
import fcntl
import functools
import hashlib
import logging
import os
import platform
import re
import shutil
import site
import subprocess
import sys
import tempfile
from importlib import metadata
from pathlib import Path

from segjax.system import processor

SOURCE = Path(__file__).with_name("kernels.cc")
FLAGS = ("-std=c++17", "-O3", "-DNDEBUG", "-march=native", "-fopenmp", "-fPIC", "-shared")
KERNELS = (
    *("convolution", "convolution_input_gradient", "convolution_kernel_gradient"),
    *(
        "transposed_convolution",
        "relu_gradient",
        "moments",
        "affine",
        "affine_sums",
        "affine_gradient",
    ),
    *("max_pool", "spread", "gather"),
)

_log = logging.getLogger(__name__)


class Unavailable(OSError):
    """The kernels cannot be used; the message says what is missing and how to install it."""


@dataclasses.dataclass(frozen=True)
class Library:
    """A build of the kernels, loaded and registered with XLA."""

    version: str  # of oneDNN, such as "3.2.0"
    key: str  # hash of the build's inputs
    loaded: ctypes.CDLL = dataclasses.field(repr=False, compare=False)

    def target(self, kernel: str) -> str:
        """Return XLA's name of a kernel of this build."""
        # It includes the key, so that a program from the compilation cache finds the same kernels
        # or none.
        return f"segjax_{kernel}_{self.key}"


@functools.cache
def library() -> Library | None:
    """Return the kernels, built and loaded on the first call; None if they are not used.

    Raises:
      Unavailable: SEGJAX_ONEDNN=on and they cannot be used, or its value is unknown.
    """
    wanted = os.environ.get("SEGJAX_ONEDNN", "")
    if wanted not in ("", "auto", "on", "off"):
        raise Unavailable(f"SEGJAX_ONEDNN is {wanted!r}, expected auto, on or off")
    if wanted == "off":
        return None
    try:
        return _load()
    except OSError as error:  # any failure: XLA computes instead
        if wanted == "on":
            raise Unavailable(f"SEGJAX_ONEDNN=on, but {error}") from None
        _log.warning("XLA computes convolutions, slower than oneDNN on a CPU: %s", error)
        return None


def _load():
    import jax

    root, version = _find_onednn()
    compiler = _find_compiler()
    key = _key(root, version, compiler)
    path = _cache() / f"{key}.so"
    if not path.exists():
        _build(path, root, compiler)
    # Threads that spin between calls would take the cores from XLA's threads.
    os.environ.setdefault("GOMP_SPINCOUNT", "0")
    try:
        loaded = ctypes.CDLL(str(path))
    except OSError as error:
        raise Unavailable(f"oneDNN cannot be loaded: {error}") from None
    found = Library(version, key, loaded)
    for kernel in KERNELS:
        handler = jax.ffi.pycapsule(getattr(loaded, kernel))
        jax.ffi.register_ffi_target(found.target(kernel), handler, platform="cpu")
    return found


def _find_onednn():
    """Return the folder with include/ and lib/ of oneDNN 3, and its version."""
    named = os.environ.get("SEGJAX_ONEDNN_DIR")
    places = [Path(named)] if named else [Path(sys.prefix), Path(site.USER_BASE or sys.prefix)]
    if not named:
        places += [Path("/usr/local"), Path("/usr")]
    others = []
    for place in places:
        header = place / "include" / "oneapi" / "dnnl" / "dnnl_version.h"
        if not header.is_file() or not _shared_object(place):
            continue
        text = header.read_text(errors="replace")
        numbers = [
            re.search(rf"DNNL_VERSION_{part}\s+(\d+)", text) for part in ("MAJOR", "MINOR", "PATCH")
        ]
        version = ".".join(number[1] for number in numbers if number)
        if version.startswith("3."):
            return place, version
        others.append(f"{place} has version {version or 'unknown'}")
    if named or others:
        found = "; ".join(others) or f"SEGJAX_ONEDNN_DIR={named} lacks its include/ and lib/"
        raise Unavailable(f"oneDNN 3 is needed: {found}")
    if sys.platform != "linux" or platform.machine() != "x86_64":
        where = f"{sys.platform} on {platform.machine()}"
        raise Unavailable(f"oneDNN 3 not found (set SEGJAX_ONEDNN_DIR to its folder; {where})")
    raise Unavailable("oneDNN 3 not found: pip install 'segjax[onednn]'")


def _shared_object(root):
    folders = [root / "lib", root / "lib64", *root.glob("lib/*-linux-gnu")]
    found = (folder / "libdnnl.so.3" for folder in folders)
    return next((path for path in found if path.exists()), None)


def _find_compiler():
    for name in (os.environ.get("CXX"), "c++", "g++", "clang++"):
        if name and (found := shutil.which(name)):
            return found
    raise Unavailable("no C++ compiler found: install g++ (apt-get install g++)")


def _key(root, version, compiler):
    """Return a hash of everything that the build depends on, including the CPU's instructions."""
    shared = _shared_object(root).resolve()
    described = subprocess.run([compiler, "--version"], capture_output=True, text=True).stdout
    text = "\n".join(
        [
            SOURCE.read_text(),
            *(metadata.version("jaxlib"), version, str(shared), str(shared.stat().st_size)),
            *(described.partition("\n")[0], " ".join(FLAGS), processor.instructions()),
        ]
    )
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def _cache():
    if named := os.environ.get("XDG_CACHE_HOME"):
        base = Path(named)
    else:
        try:
            base = Path.home() / ".cache"
        except RuntimeError:  # no home
            base = Path(tempfile.gettempdir()) / f"cache-{os.getuid()}"
    return base / "segjax" / "onednn"


def _build(path, root, compiler):
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with path.with_suffix(".lock").open("w") as lock:
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                _log.warning("waiting for another process to compile %s ...", path)
                fcntl.flock(lock, fcntl.LOCK_EX)
            if not path.exists():  # another process may have built it in the meantime
                _compile(path, root, compiler)
    except OSError as error:
        if isinstance(error, Unavailable):
            raise
        raise Unavailable(f"{error.filename or path}: {error.strerror}") from None


def _compile(path, root, compiler):
    import jax

    shared = _shared_object(root)
    partial = path.with_suffix(".tmp")
    command = [
        *(compiler, *FLAGS, "-isystem", jax.ffi.include_dir(), "-isystem", str(root / "include")),
        *(str(SOURCE), "-o", str(partial), str(shared), f"-Wl,-rpath,{shared.parent}"),
    ]
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode:
        errors = [text for text in done.stderr.splitlines() if "error" in text]
        raise Unavailable(f"{compiler} failed: {(errors or ['no error message'])[0].strip()}")
    os.replace(partial, path)


def versions(platform: str) -> dict[str, str]:
    """Return {"onednn": version} if the kernels compute on this platform, else {}."""
    found = library() if platform == "cpu" else None
    return {"onednn": found.version} if found else {}


def describe() -> str:
    """Describe what computes convolutions on a CPU, and if it is XLA, why.

    This builds and loads nothing, and does not import JAX.
    """
    if os.environ.get("SEGJAX_ONEDNN") == "off":
        return "XLA (SEGJAX_ONEDNN=off)"
    try:
        _, version = _find_onednn()
        _find_compiler()
    except Unavailable as error:
        return f"XLA ({error})"
    return f"oneDNN {version}"
