"""The scripts of `launch/`, called in this process."""

import runpy
import shlex
from pathlib import Path

ROOT = Path(__file__).parents[2]


def launch(script: str, arguments: str) -> int:
    """The exit status of a script of `launch/` that is given these arguments."""
    return runpy.run_path(str(ROOT / "launch" / script))["main"](shlex.split(arguments))
