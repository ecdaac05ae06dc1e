"""Test baselines and upper bounds by hand and on the real CamVid."""

import numpy as np
import pytest

from segjax.data.datasets import VOID
from segjax.inference import baselines

# Global accuracy, class accuracy and mean IoU on the 233 test images at 360x480, in percent, as
# computed from the authors' label files independently of this code.
CAMVID = {
    "all Road": (26.8, 9.1, 2.4),
    "per-pixel mode": (61.5, 24.7, 17.0),
    "oracle stride 2": (98.7, 95.4, 93.7),
    "oracle stride 4": (97.5, 92.7, 88.6),
    "oracle stride 8": (95.6, 86.9, 80.8),
    "oracle stride 16": (92.8, 78.9, 71.0),
    "oracle stride 32": (88.1, 67.7, 58.5),
}


def test_majority_vote_of_small_blocks():
    label = np.array(
        [
            [0, 1, 2, 2, 1],
            [1, 1, VOID, 0, VOID],
            [VOID, VOID, 2, 0, 2],
        ],
        np.uint8,
    )
    # Blocks: {0,1,1,1}, {2,2,void,0}, {1,void}; {void,void} has no vote, {2,0} is a tie, {2}.
    expected = [[1, 1, 2, 2, 1], [1, 1, 2, 2, 1], [0, 0, 0, 0, 2]]
    np.testing.assert_array_equal(baselines.majority_vote(label, stride=2, num_classes=3), expected)


def test_pixel_mode_of_three_labels():
    labels = [[[0, 1, VOID]], [[2, 1, VOID]], [[2, 0, 1]]]
    mode = baselines.pixel_mode((np.array(x, np.uint8) for x in labels), (1, 3), 3)
    np.testing.assert_array_equal(mode, [[2, 1, 1]])


def test_camvid_scores_match_independent_computation(camvid_data_dir):
    rows = baselines.rows("camvid", "test", camvid_data_dir, None, "segjax baselines")
    found = {
        row["name"]: tuple(
            100 * row[score] for score in ("global_accuracy", "class_accuracy", "mean_iou")
        )
        for row in rows
    }
    assert found.keys() == CAMVID.keys()
    for name, expected in CAMVID.items():
        # The figures are rounded to a tenth of a percent.
        assert found[name] == pytest.approx(expected, abs=0.0501), name
    pole = next(row for row in rows if row["name"] == "oracle stride 8")
    assert 100 * pole["per_class_iou"][2] == pytest.approx(31.5, abs=0.0501)
