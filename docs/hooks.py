"""Copy files outside docs/ that pages link to into the site (a MkDocs hook).

A page links to a picture or a config as `../experiments/NAME`, which also works where the
repository is browsed; on the site it is `files/experiments/NAME`.
"""

import re
from pathlib import Path

from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files

OUTSIDE = re.compile(r"\]\(\.\./([^)#\s]+)")


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Add each linked file to the site."""
    root = Path(config.config_file_path).parent
    for page in files.documentation_pages():
        for target in OUTSIDE.findall(page.content_string):
            if files.get_file_from_path(f"files/{target}") is None:
                source = str(root / target)
                files.append(File.generated(config, f"files/{target}", abs_src_path=source))
    return files


def on_page_markdown(markdown: str, **_: object) -> str:
    """Point the links at the copies."""
    return OUTSIDE.sub(r"](files/\1", markdown)
