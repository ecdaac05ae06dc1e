"""Test the name of the processor."""

import platform

import pytest

from segjax.system import processor


@pytest.mark.parametrize(
    ("text", "name"),
    [
        ("model name\t: EPYC 1\nflags\t\t: fpu avx avx2\nmodel name\t: other\n", "EPYC 1, avx2"),
        ("model name : X\nflags : avx avx2 avx512f avx512_bf16\n", "X, avx512_bf16"),
        ("model name : X\nflags : avx512_bf16x\n", "X"),
    ],
)
def test_model_and_newest_vectors(tmp_path, monkeypatch, text, name):
    path = tmp_path / "cpuinfo"
    path.write_text(text)
    monkeypatch.setattr(processor, "CPUINFO", path)
    assert processor.name() == name


def test_without_cpuinfo(tmp_path, monkeypatch):
    monkeypatch.setattr(processor, "CPUINFO", tmp_path / "none")
    assert processor.name() == (platform.processor() or platform.machine())
    assert processor.instructions() == platform.processor()
