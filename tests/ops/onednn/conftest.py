import pytest

from segjax.ops.onednn import build


@pytest.fixture(scope="session", autouse=True)
def _engine():
    """Here oneDNN is tested; the project's own installation on Linux x86-64 brings it."""
    if build.library() is None:
        pytest.skip(f"no oneDNN: {build.describe()}")
