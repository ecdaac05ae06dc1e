"""Scenes: the same at every size, reproducible, and as hard as intended."""

import numpy as np
import pytest

from segjax.data.camvid import CLASS_NAMES
from segjax.data.datasets import VOID
from segjax.data.streetscenes.scene import render

NUM_CLASSES = len(CLASS_NAMES)

# Of the pixels that are not void in CamVid's training split.
CAMVID_SHARES = [0.1754, 0.2422, 0.01023, 0.3296, 0.0467, 0.1012, 0.01221, 0.01173, 0.0611]
CAMVID_SHARES += [0.00666, 0.00304]


@pytest.fixture(scope="module")
def scenes():
    """Draw 200 scenes at 96x128: images (N, H, W, 3) and labels (N, H, W)."""
    images, labels = zip(*(render(0, index, 96, 128) for index in range(200)), strict=True)
    return np.stack(images), np.stack(labels)


def share(label, name):
    return np.mean(label == CLASS_NAMES.index(name))


def runs_along_rows(mask):
    """Return the lengths of the horizontal runs of True."""
    edges = np.diff(np.pad(mask, ((0, 0), (1, 1))).astype(np.int8), axis=1)
    starts, ends = np.argwhere(edges == 1), np.argwhere(edges == -1)
    return ends[:, 1] - starts[:, 1]


def test_a_scene_is_a_function_of_seed_and_index_alone():
    image, label = render(3, 5, 48, 64)
    np.random.seed(1)
    render(9, 9, 48, 64)
    again, label_again = render(3, 5, 48, 64)
    np.testing.assert_array_equal(again, image)
    np.testing.assert_array_equal(label_again, label)
    for seed, index in ((3, 6), (4, 5), (5, 3)):
        other, other_label = render(seed, index, 48, 64)
        assert np.mean(other != image) > 0.5
        assert np.mean(other_label != label) > 0.05


@pytest.mark.parametrize(
    ("height", "width"), [(24, 32), (32, 32), (33, 47), (61, 45), (97, 131), (40, 160), (360, 480)]
)
def test_any_size(height, width):
    for index in range(3):
        image, label = render(1, index, height, width)
        assert image.shape == (height, width, 3)
        assert label.shape == (height, width)
        assert image.dtype == label.dtype == np.uint8
        assert set(np.unique(label)) <= {*range(NUM_CLASSES), VOID}
        assert image.std() > 10
        assert share(label, "Road") > 0.1


def test_class_shares_are_those_of_camvid_within_a_factor_of_three(scenes):
    _, labels = scenes
    counts = np.bincount(labels.ravel(), minlength=VOID + 1)
    ratios = counts[:NUM_CLASSES] / counts[:NUM_CLASSES].sum() / CAMVID_SHARES
    assert all(1 / 3 < ratio < 3 for ratio in ratios), dict(zip(CLASS_NAMES, ratios, strict=True))
    assert 0.01 < counts[VOID] / counts.sum() < 0.05


def test_rare_classes_are_missing_in_some_scenes_and_none_in_all(scenes):
    _, labels = scenes
    present = np.array([[np.any(label == k) for k in range(NUM_CLASSES)] for label in labels])
    often = dict(zip(CLASS_NAMES, present.mean(axis=0), strict=True))
    assert min(often.values()) > 0.2
    assert often["Sky"] == often["Road"] == 1
    assert often["Bicyclist"] < 0.7
    assert often["Fence"] < 0.95


def test_void_covers_some_borders_but_not_all(scenes):
    _, labels = scenes
    borders = np.stack([labels[:, 0], labels[:, -1]]) == VOID
    strips = borders.mean(axis=2)
    assert 0.2 < np.mean(strips > 0.5) < 0.7
    assert 0.2 < np.mean(strips < 0.1) < 0.8


@pytest.mark.parametrize(("height", "width", "scenes_drawn"), [(96, 128, 30), (360, 480, 6)])
def test_poles_are_thin(height, width, scenes_drawn):
    pole = CLASS_NAMES.index("Pole")
    labels = [render(0, index, height, width)[1] for index in range(scenes_drawn)]
    widths = np.concatenate([runs_along_rows(label == pole) for label in labels])
    assert len(widths) > 500
    assert widths.min() == 1
    assert np.median(widths) <= 3
    # A far post does not fall between the pixels: of those in sight most are unbroken upward.
    heights = np.concatenate([runs_along_rows((label == pole).T) for label in labels])
    assert np.percentile(heights, 90) > 0.1 * height


def test_the_scene_is_the_same_at_every_size():
    agreements, other_scene = [], []
    for index in range(12):
        small = render(0, index, 96, 128)[1]
        large = render(0, index, 192, 256)[1]
        agreements.append(np.mean(small == large[::2, ::2]))
        other_scene.append(np.mean(small == render(0, index + 1, 192, 256)[1][::2, ::2]))
    assert min(agreements) > 0.9
    assert max(other_scene) < 0.85


def test_a_resized_image_is_the_image_at_the_smaller_size():
    for index in range(4):
        small = render(0, index, 96, 128)[0].astype(float)
        large = render(0, index, 192, 256)[0].astype(float)
        shrunk = large.reshape(96, 2, 128, 2, 3).mean(axis=(1, 3))
        assert np.mean(np.abs(small - shrunk)) < 14
        assert np.corrcoef(small.ravel(), shrunk.ravel())[0, 1] > 0.9


def test_color_alone_does_not_give_the_class(scenes):
    """Classification by the nearest mean color, fitted to the same pixels, is mostly wrong."""
    images, labels = (part[::4, ::4, ::4] for part in scenes)
    pixels, truth = images[labels != VOID].astype(float), labels[labels != VOID]
    means = np.stack([pixels[truth == k].mean(axis=0) for k in range(NUM_CLASSES)])
    distances = ((pixels[:, None] - means) ** 2).sum(axis=-1)
    assert np.mean(distances.argmin(axis=1) == truth) < 0.4


def test_light_and_paint_change_from_scene_to_scene(scenes):
    images, labels = scenes
    for k in range(NUM_CLASSES):
        chosen = [i for i in range(len(labels)) if np.sum(labels[i] == k) >= 10]
        tones = np.stack([images[i][labels[i] == k].mean(axis=0) for i in chosen])
        assert tones.std(axis=0).min() > 15, CLASS_NAMES[k]


def test_image_and_label_show_the_same_things(scenes):
    """Edges in the image are stronger where the label changes than inside a class."""
    images, labels = scenes
    steps = np.abs(np.diff(images.astype(float).mean(axis=-1), axis=2))
    known = (labels[:, :, 1:] != VOID) & (labels[:, :, :-1] != VOID)
    border = labels[:, :, 1:] != labels[:, :, :-1]
    assert steps[known & border].mean() > 2 * steps[known & ~border].mean()
