"""Name the CPU and its vector instructions."""

import platform
import re
from pathlib import Path

CPUINFO = Path("/proc/cpuinfo")  # of Linux
_VECTORS = ("amx_bf16", "avx512_bf16", "avx512f", "avx2", "avx")  # from new to old


def name() -> str:
    """Return the CPU's model and its newest vector instructions, such as `AMD EPYC, avx2`."""
    model = _field("model name") or platform.processor() or platform.machine()
    vectors = [x for x in _VECTORS if x in instructions().split()]
    return ", ".join([model, *vectors[:1]])


def instructions() -> str:
    """Return the names of the CPU's instructions as Linux has them, or else the CPU's name."""
    return _field("flags") or platform.processor()


def _field(key):
    try:
        found = re.search(rf"^{key}\s*:(.*)$", CPUINFO.read_text(), re.MULTILINE)
    except OSError:
        return ""
    return found[1].strip() if found else ""
