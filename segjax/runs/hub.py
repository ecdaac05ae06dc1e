"""Run directories on the Hugging Face hub: `hf:user/name` or `hf:user/name@revision`.

The hub's own library downloads and uploads; it follows its variables HF_TOKEN, HF_HOME,
HF_HUB_OFFLINE and HF_ENDPOINT.
"""

import os
import re
from pathlib import Path

from segjax.errors import UserError, one_line
from segjax.runs import weights
from segjax.system import waiting

PREFIX = "hf:"
FILES = [weights.FILE, "config.json", "result.json"]  # what is downloaded of a repository
NAME = r"[\w.-]+/[\w.-]+"


def locate(source: str | os.PathLike[str]) -> Path:
    """Return the path of a folder or file; a folder of the hub is downloaded into its cache first.

    Raises:
      UserError: `hf:` is not followed by a name, or the download fails.
    """
    text = os.fspath(source)
    if not text.startswith(PREFIX):
        return Path(text).expanduser()
    name, _, revision = text.removeprefix(PREFIX).partition("@")
    if not re.fullmatch(NAME, name):
        raise UserError(f"{text} is not on the hub, expected hf:user/name or hf:user/name@revision")

    from huggingface_hub import snapshot_download  # slow to import

    try:
        with waiting.reported(f"waiting for {name} of the Hugging Face hub"):
            return Path(snapshot_download(name, revision=revision or None, allow_patterns=FILES))
    except Exception as error:  # also of the hub's HTTP client, whose module varies
        raise UserError(f"{text} cannot be downloaded: {one_line(error)}") from error


def upload(folder: Path, name: str, private: bool) -> str:
    """Upload the files of a folder, as one commit, to a repository, created if missing.

    Args:
      folder: of the files.
      name: `user/name`.
      private: whether a new repository is private.

    Returns:
      The URL of the repository.

    Raises:
      UserError: the name is none, or the upload fails, as without a token.
    """
    if not re.fullmatch(NAME, name):
        raise UserError(f"repository {name!r} is not a name on the hub, expected user/name")

    from huggingface_hub import HfApi  # slow to import

    try:
        with waiting.reported(f"waiting for {name} of the Hugging Face hub"):
            api = HfApi()
            url = api.create_repo(name, private=private, exist_ok=True)
            api.upload_folder(repo_id=name, folder_path=folder, commit_message="segjax push")
    except Exception as error:  # also of the hub's HTTP client, whose module varies
        raise UserError(f"{name} cannot be uploaded: {one_line(error)}") from error
    return str(url)
