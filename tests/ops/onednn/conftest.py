import os

import pytest

from segjax.ops.onednn import build


@pytest.fixture(scope="session", autouse=True)
def _engine():
    """Load oneDNN, which `make` installs on Linux x86-64; CI requires it."""
    if build.library() is None:
        stop = pytest.fail if os.environ.get("CI") else pytest.skip
        stop(f"no oneDNN: {build.describe()}")
