"""Finding and building oneDNN, and the messages when that fails."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from segjax.errors import line
from segjax.ops.onednn import build


@pytest.fixture
def unloaded(monkeypatch):
    """Forget the library of this process for one test."""
    monkeypatch.setattr(build, "library", build.functools.cache(build.library.__wrapped__))
    for name in ("SEGJAX_ONEDNN", "SEGJAX_ONEDNN_DIR", "CXX"):
        monkeypatch.delenv(name, raising=False)
    return monkeypatch


def no_compiler(monkeypatch, tmp_path):
    monkeypatch.setenv("PATH", str(tmp_path))


def no_library(monkeypatch, tmp_path):
    monkeypatch.setattr(build, "_shared_object", lambda root: None)


def old_library(monkeypatch, tmp_path):
    (tmp_path / "lib").mkdir()
    (tmp_path / "lib" / "libdnnl.so.3").touch()
    header = tmp_path / "include" / "oneapi" / "dnnl" / "dnnl_version.h"
    header.parent.mkdir(parents=True)
    numbers = zip(("MAJOR", "MINOR", "PATCH"), (2, 6, 3), strict=True)
    header.write_text("".join(f"#define DNNL_VERSION_{name} {n}\n" for name, n in numbers))
    monkeypatch.setenv("SEGJAX_ONEDNN_DIR", str(tmp_path))


def no_folder(monkeypatch, tmp_path):
    monkeypatch.setenv("SEGJAX_ONEDNN_DIR", str(tmp_path / "none"))


def broken_compiler(monkeypatch, tmp_path):
    script = tmp_path / "cxx"
    script.write_text("#!/bin/sh\necho 'x.cc:1: fatal error: no such thing' >&2\nexit 1\n")
    script.chmod(0o755)
    monkeypatch.setenv("CXX", str(script))
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))


def no_place(monkeypatch, tmp_path):
    (tmp_path / "file").touch()
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "file"))


MISSING = {
    no_compiler: "no C++ compiler found: install g++",
    no_library: "oneDNN 3 not found: pip install 'segjax[onednn]'",
    old_library: "has version 2.6.3",
    no_folder: "oneDNN 3 is needed: SEGJAX_ONEDNN_DIR=",
    broken_compiler: "no such thing",
    no_place: "Not a directory",
}


@pytest.mark.parametrize("missing", MISSING, ids=lambda each: each.__name__)
def test_what_is_missing_is_logged_once_and_an_error_if_onednn_is_on(
    missing, unloaded, tmp_path, caplog
):
    missing(unloaded, tmp_path)
    assert build.library() is None
    assert build.library() is None
    (record,) = caplog.records
    assert "XLA computes convolutions" in record.getMessage()
    assert MISSING[missing] in record.getMessage()
    assert build.versions("cpu") == {}

    build.library.cache_clear()
    unloaded.setenv("SEGJAX_ONEDNN", "on")
    with pytest.raises(build.Unavailable, match="SEGJAX_ONEDNN=on, but") as caught:
        build.library()
    assert MISSING[missing] in line(caught.value)
    assert isinstance(caught.value, OSError)  # which ends a command with status 2


def test_off_is_silent(unloaded, caplog):
    unloaded.setenv("SEGJAX_ONEDNN", "off")
    assert build.library() is None
    assert build.describe() == "XLA (SEGJAX_ONEDNN=off)"
    assert not caplog.records


def test_an_unknown_value_is_refused(unloaded):
    unloaded.setenv("SEGJAX_ONEDNN", "yes")
    with pytest.raises(build.Unavailable, match="'yes', expected auto, on or off"):
        build.library()


def test_versions_are_those_of_a_cpu():
    assert build.versions("cpu")["onednn"].startswith("3.")
    assert build.versions("gpu") == {}


@pytest.mark.slow
def test_three_processes_build_it_once_and_whole(tmp_path):
    counter = tmp_path / "cxx"
    real = build._find_compiler()
    counter.write_text(f'#!/bin/sh\ncase "$*" in *kernels.cc*) echo >> {tmp_path}/built;; esac\n')
    with counter.open("a") as file:
        file.write(f'exec {real} "$@"\n')
    counter.chmod(0o755)
    environment = os.environ | {"XDG_CACHE_HOME": str(tmp_path / "cache"), "CXX": str(counter)}
    starts = [
        subprocess.Popen(
            [sys.executable, "-m", "segjax.ops.onednn"],
            env=environment,
            stdout=subprocess.PIPE,
            text=True,
        )
        for _ in range(3)
    ]
    for process in starts:
        said, _ = process.communicate(timeout=300)
        assert process.returncode == 0
        assert said.startswith("convolutions on a CPU: oneDNN 3.")
    assert (tmp_path / "built").read_text() == "\n"
    left = sorted(path.suffix for path in Path(tmp_path / "cache/segjax/onednn").iterdir())
    assert left == [".lock", ".so"]
