"""Both ends of a worker process of `segjax benchmark`: requests and answers in lines of JSON."""

import contextlib
import ctypes
import gc
import json
import os
import re
import signal
import subprocess
import sys
import tempfile
import traceback
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from segjax.errors import UserError


class Failed(Exception):
    """A side failed to answer a request."""


class Side:
    """A worker process, running from construction until `end`."""

    def __init__(self, command: Sequence[str]):
        self._log = tempfile.TemporaryFile()  # noqa: SIM115, closed by `end`
        self._process = subprocess.Popen(
            command,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._log,
            # Otherwise the first process reserves most of the GPU memory.
            env=os.environ | {"XLA_PYTHON_CLIENT_PREALLOCATE": "false"},
            text=True,
        )

    def ask(self, do: str, **request: Any) -> dict[str, Any]:
        """Return the answer to a request (see `segjax.benchmark.worker`).

        Raises:
          Failed: the process reports an error, or has ended.
        """
        requests, answers = self._process.stdin, self._process.stdout
        assert requests is not None  # both are pipes
        assert answers is not None
        line = ""
        try:
            requests.write(json.dumps({"do": do, **request}) + "\n")
            requests.flush()
            line = answers.readline()
        except BrokenPipeError:
            pass  # the process has ended; `line` stays empty
        if not line:
            raise Failed(self._ended())
        answer = json.loads(line)
        if "error" in answer:
            raise Failed(answer["error"])
        return answer

    def _ended(self):
        status = self._process.wait()
        if status == -signal.SIGKILL:
            return "out of memory (killed)"
        self._log.seek(0)
        said = self._log.read().decode(errors="replace").strip().splitlines()
        return f"ended with status {status}: {said[-1] if said else 'no error message'}"

    def end(self) -> None:
        """Kill the process."""
        self._process.kill()
        self._process.wait()
        for pipe in (self._process.stdin, self._process.stdout):
            with contextlib.suppress(BrokenPipeError):
                pipe.close()  # type: ignore[union-attr]
        self._log.close()


def serve(answers: Mapping[str, Callable[..., dict[str, Any]]]) -> None:
    """Answer requests until standard input ends; other output goes to standard error."""
    replies = os.fdopen(os.dup(sys.stdout.fileno()), "w")
    os.dup2(sys.stderr.fileno(), sys.stdout.fileno())
    for line in sys.stdin:
        asked = json.loads(line)
        try:
            reply = answers[asked.pop("do")](**asked)
        except UserError as error:
            reply = {"error": str(error)}
        except Exception as error:  # the benchmark continues with the next network
            traceback.print_exc()
            first = (str(error).splitlines() or [""])[0]
            full = isinstance(error, MemoryError) or "RESOURCE_EXHAUSTED" in first
            reply = {"error": "out of memory" if full else f"{type(error).__name__}: {first}"}
        replies.write(json.dumps(reply) + "\n")
        replies.flush()


def resident() -> tuple[int, int] | None:
    """Return current and peak resident bytes of this process; None if not on Linux."""
    try:
        text = Path("/proc/self/status").read_text()
    except OSError:
        return None
    found = (re.search(rf"^{name}:\s+(\d+) kB", text, re.MULTILINE) for name in ("VmRSS", "VmHWM"))
    now, most = (1024 * int(match[1]) if match else 0 for match in found)
    return now, most


def forget_peak() -> None:
    """Return freed memory to the system and reset the peak of `resident`, if possible."""
    gc.collect()
    try:
        ctypes.CDLL("libc.so.6").malloc_trim(0)
        Path("/proc/self/clear_refs").write_text("5")
    except (OSError, AttributeError):
        return
