"""Test atomic file writing."""

import os

import pytest
from etils import epath

from segjax.system.files import take_folders_literally, write_whole


def test_write_replaces_content_and_leaves_no_other_file(tmp_path):
    path = tmp_path / "new" / "a.json"
    write_whole(path, "first")
    write_whole(path, "zwölf".encode())
    assert path.read_text(encoding="utf-8") == "zwölf"
    assert [file.name for file in path.parent.iterdir()] == ["a.json"]


@pytest.mark.parametrize("call", ["write", "fsync", "replace"])
def test_interrupted_write_keeps_old_content(tmp_path, monkeypatch, call):
    path = tmp_path / "a.json"
    write_whole(path, "old")

    def cut_off(*_):
        raise KeyboardInterrupt

    if call == "replace":
        monkeypatch.setattr("pathlib.Path.replace", cut_off)
    elif call == "fsync":
        monkeypatch.setattr(os, "fsync", cut_off)
    content = "new" if call != "write" else object()
    with pytest.raises((KeyboardInterrupt, TypeError)):
        write_whole(path, content)
    assert path.read_text() == "old"
    monkeypatch.undo()
    write_whole(path, "new")
    assert path.read_text() == "new"


def test_etils_takes_folders_literally(tmp_path):
    folder = tmp_path / "a [x]*?"
    folder.mkdir()
    (folder / "one.json").touch()
    (tmp_path / "a x").mkdir()
    (tmp_path / "a x" / "other.json").touch()
    for _ in range(2):
        take_folders_literally()
        assert [path.name for path in epath.Path(folder).glob("*.json")] == ["one.json"]
