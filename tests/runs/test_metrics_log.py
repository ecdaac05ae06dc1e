"""Test `metrics.jsonl`, its damage and its resumption."""

import math
from contextlib import closing

import numpy as np
import pytest

from segjax.errors import UserError
from segjax.runs.metrics_log import MetricsLog, read_metrics


def test_rows_are_read_back(tmp_path):
    path = tmp_path / "metrics.jsonl"
    with closing(MetricsLog(path, 0)) as log:
        log.write(10, {"train/loss": np.float32(0.1), "val/mean_iou": np.float64(0.1)})
        log.write(10, {"val/iou/Road": 0.25})
        assert read_metrics(path)[-1] == {"step": 10, "val/iou/Road": 0.25}  # while the log is open
    assert read_metrics(path)[0] == {
        "step": 10,
        "train/loss": float(np.float32(0.1)),
        "val/mean_iou": 0.1,
    }


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_non_finite_value_is_null_on_disk_and_nan_when_read(tmp_path, value):
    path = tmp_path / "metrics.jsonl"
    with closing(MetricsLog(path, 0)) as log:
        log.write(1, {"loss": np.float32(value)})
    assert path.read_text() == '{"step": 1, "loss": null}\n'
    assert math.isnan(read_metrics(path)[0]["loss"])


def test_resumed_log_equals_uninterrupted_log(tmp_path):
    path = tmp_path / "metrics.jsonl"

    def go_on(start, stop):
        with closing(MetricsLog(path, start)) as log:
            for step in range(start, stop):
                if step == 0:
                    log.write(0, {"val/mean_iou": 0.0})
                log.write(step + 1, {"loss": 1 / (step + 1)})
                if step % 2:
                    log.write(step + 1, {"val/mean_iou": step / 10})

    go_on(0, 6)
    whole = path.read_bytes()
    for killed_after in range(len(whole) + 1):
        for start in (0, 3):
            if whole[:killed_after].count(b"\n") < 5 and start == 3:
                continue  # the checkpoint of step 3 is written after these rows
            path.write_bytes(whole[:killed_after])
            go_on(start, 6)
            assert path.read_bytes() == whole
    assert [file.name for file in tmp_path.iterdir()] == ["metrics.jsonl"]


def test_incomplete_last_line_is_ignored(tmp_path):
    path = tmp_path / "metrics.jsonl"
    path.write_text('{"step": 1, "loss": 0.5}\n{"step": 2}')
    assert read_metrics(path) == [{"step": 1, "loss": 0.5}]


@pytest.mark.parametrize(
    "line",
    ['{"step": 1, "lo', "[1]", '{"loss": 1}', '{"step": "1"}', "", "9" * 5000, "[" * 100_000],
)
def test_damaged_line_is_named_with_its_file(tmp_path, line):
    path = tmp_path / "metrics.jsonl"
    path.write_text('{"step": 1}\n' + line + '\n{"step": 3}\n')
    for call in (read_metrics, lambda path: MetricsLog(path, 3)):
        with pytest.raises(UserError, match=r"metrics\.jsonl:2: damaged, expected a row"):
            call(path)


def test_missing_file_is_a_user_error(tmp_path):
    with pytest.raises(UserError, match=r"missing\.jsonl: no such file"):
        read_metrics(tmp_path / "missing.jsonl")
