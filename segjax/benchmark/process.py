"""Both ends of a worker process of `segjax benchmark`, and the timing that all workers share.

Requests and answers are lines of JSON. Nothing of segjax is imported: `torch_peers.py` uses this
module where segjax is not installed.
"""

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
import time
import traceback
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

PROGRAMS = ("forward", "training_step", "gradient")
DISTINCT = 4  # number of batches, cycled so that none is cached from the previous call
# So small that thousands of steps do not change the weights.
LEARNING_RATE = 1e-12
SAMPLE_SECONDS = 0.05  # target duration of a sample of 1 to MOST_CALLS calls
MOST_CALLS = 20
WARM_UP = 2  # calls before timing, after the first; fewer if one takes longer than LONG
LONG = 1.0  # seconds


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


def serve(answers: Mapping[str, Callable[..., dict[str, Any]]], refusal: type[Exception]) -> None:
    """Answer requests until standard input ends; other output goes to standard error.

    Args:
      answers: function of each request, by its name.
      refusal: exception whose message alone is the error.
    """
    replies = os.fdopen(os.dup(sys.stdout.fileno()), "w")
    os.dup2(sys.stderr.fileno(), sys.stdout.fileno())
    for line in sys.stdin:
        asked = json.loads(line)
        try:
            reply = answers[asked.pop("do")](**asked)
        except refusal as error:
            reply = {"error": str(error)}
        except Exception as error:  # the benchmark continues with the next network
            traceback.print_exc()
            first = (str(error).splitlines() or [""])[0]
            # XLA's error; PyTorch's is "CUDA out of memory", or of cuDNN or cuBLAS.
            full = isinstance(error, MemoryError) or any(
                words in first for words in ("RESOURCE_EXHAUSTED", "out of memory")
            )
            reply = {"error": "out of memory" if full else f"{type(error).__name__}: {first}"}
        replies.write(json.dumps(reply) + "\n")
        replies.flush()


def warm_up(call: Callable[[], object], most: int) -> int:
    """Call up to `most` times; return the number of calls of a sample, from the last duration."""
    for _ in range(most):
        start = time.perf_counter()
        call()
        seconds = time.perf_counter() - start
        if seconds > LONG:
            break
    return max(1, min(MOST_CALLS, round(SAMPLE_SECONDS / seconds)))


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
    with contextlib.suppress(OSError, AttributeError):
        ctypes.CDLL("libc.so.6").malloc_trim(0)
        Path("/proc/self/clear_refs").write_text("5")
