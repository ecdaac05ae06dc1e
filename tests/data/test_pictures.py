import numpy as np
import pytest
from PIL import Image

from segjax.data import pictures
from segjax.errors import UserError

PALETTE = ((128, 128, 128), (128, 64, 128), (0, 128, 192))
LABEL = np.array([[0, 1, 2], [255, 2, 1]], np.uint8)


def test_colors_follow_the_palette_and_void_is_black():
    drawn = pictures.colorize(LABEL, PALETTE)
    assert drawn.dtype == np.uint8
    for (y, x), value in np.ndenumerate(LABEL):
        assert tuple(drawn[y, x]) == ((0, 0, 0) if value == 255 else PALETTE[value])
    np.testing.assert_array_equal(pictures.colorize(LABEL.astype(np.int32), PALETTE), drawn)


@pytest.mark.parametrize("value", [3, 11, 254, 256, -1])
def test_a_value_that_is_not_a_class_is_refused(tmp_path, value):
    label = LABEL.astype(np.int32)
    label[1, 1] = value
    message = f"^label value {value}, expected 0 to 2, or 255 for void$"
    with pytest.raises(UserError, match=message):
        pictures.colorize(label, PALETTE)
    with pytest.raises(UserError, match=message):
        pictures.save_label(tmp_path / "label.png", label, PALETTE)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("label", [LABEL[None], LABEL.astype(np.float32)])
def test_arrays_that_are_not_labels_are_refused(label):
    with pytest.raises(UserError, match=r"expected integers \(H, W\)"):
        pictures.colorize(label, PALETTE)


def test_overlay_mixes_by_opacity_and_keeps_the_image_under_void():
    image = np.random.default_rng(0).integers(0, 256, (2, 3, 3), np.uint8)
    colors = pictures.colorize(LABEL, PALETTE)
    np.testing.assert_array_equal(pictures.overlay(image, LABEL, PALETTE, 0.0), image)
    covered = LABEL != 255
    full = pictures.overlay(image, LABEL, PALETTE, 1.0)
    np.testing.assert_array_equal(full[covered], colors[covered])
    half = pictures.overlay(image, LABEL, PALETTE, 0.25)
    np.testing.assert_allclose(half[covered], (0.75 * image + 0.25 * colors)[covered], atol=0.5)
    np.testing.assert_array_equal(half[~covered], image[~covered])


def test_label_png_holds_class_ids_and_shows_colors(tmp_path):
    path = tmp_path / "new" / "label.png"
    pictures.save_label(path, LABEL.astype(np.int64), PALETTE)
    picture = Image.open(path)
    assert picture.mode == "P"
    np.testing.assert_array_equal(np.asarray(picture), LABEL)
    np.testing.assert_array_equal(
        np.asarray(picture.convert("RGB")), pictures.colorize(LABEL, PALETTE)
    )


def find(sheet, picture):
    """Return the places (top, left) of a picture in a sheet."""
    height, width = picture.shape[:2]
    sheet = np.asarray(sheet)
    windows = np.lib.stride_tricks.sliding_window_view(sheet, (height, width), axis=(0, 1))
    found = (windows == picture.transpose(2, 0, 1)).all((2, 3, 4))
    return [tuple(map(int, place)) for place in np.argwhere(found)]


def noise(seed, height, width):
    return np.random.default_rng(seed).integers(0, 256, (height, width, 3), np.uint8)


def test_grid_places_every_picture_whole_in_rows_and_columns():
    rows = [[noise(0, 20, 30), noise(1, 25, 40)], [noise(2, 10, 35)]]
    sheet = pictures.grid(rows, cell_width=30)
    ((top_a, left_a),) = find(sheet, rows[0][0])
    ((top_b, left_b),) = find(sheet, rows[0][1])
    ((top_c, left_c),) = find(sheet, rows[1][0])
    assert top_a == top_b
    assert left_a == left_c
    assert left_b >= left_a + 35
    assert top_c >= top_a + 25
    assert np.asarray(sheet)[0].min() == 255


def test_small_pictures_grow_by_a_whole_factor_without_mixing():
    small = noise(0, 7, 11)
    sheet = pictures.grid([[small]], cell_width=40)
    assert len(find(sheet, small.repeat(4, 0).repeat(4, 1))) == 1


def test_titles_and_legend_add_room_and_leave_the_pictures_alone():
    rows = [[noise(k, 40, 60) for k in range(3)]]
    plain = pictures.grid(rows, cell_width=60)
    titled = pictures.grid(
        rows, ["image", "truth", "loss.class_weights=median_frequency,seed=0"], cell_width=60
    )
    with_legend = pictures.grid(
        rows, class_names=["Sky", "Road", "Bicyclist"], palette=PALETTE, cell_width=60
    )
    assert titled.width == with_legend.width == plain.width
    assert titled.height > plain.height
    assert with_legend.height > plain.height
    for picture in rows[0]:
        ((top, left),) = find(titled, picture)
        head = np.asarray(titled)[:top, left : left + 60]
        assert head.min() < 100  # ink above each column
        assert len(find(with_legend, picture)) == 1
    for column in range(2):  # a title keeps to its own column
        edge = 8 + (column + 1) * 68 - 8
        assert np.asarray(titled)[:, edge + 1 : edge + 7].min() == 255
    foot = np.asarray(with_legend)[plain.height :].reshape(-1, 3)
    colors = {tuple(map(int, color)) for color in np.unique(foot, axis=0)}
    assert {*PALETTE, (0, 0, 0)} <= colors


def test_an_empty_grid_is_a_user_error():
    with pytest.raises(UserError, match="no pictures"):
        pictures.grid([[], []])


def test_errors_are_marked_and_void_is_neither_right_nor_wrong():
    prediction = np.array([[0, 2, 2], [1, 2, 0]], np.uint8)
    right, wrong, void = pictures.RIGHT, pictures.WRONG, pictures.UNKNOWN
    expected = np.array([[right, wrong, right], [void, right, wrong]], np.uint8)
    np.testing.assert_array_equal(pictures.errors(LABEL, prediction), expected, strict=True)


def test_heat_runs_from_black_by_red_and_yellow_to_white():
    values = np.array([[0, 1, 2, 3, 5]]) * 0.5
    colors = [(0, 0, 0), (255, 0, 0), (255, 255, 0), (255, 255, 255), (255, 255, 255)]
    found = pictures.heat(values, 1.5)
    np.testing.assert_array_equal(found, np.array([colors], np.uint8), strict=True)


@pytest.mark.parametrize(
    "image",
    [
        np.zeros((2, 3, 3)),
        np.zeros((2, 3, 3), np.uint16),
        np.zeros((2, 3, 3), np.int64),
        np.zeros((2, 3, 0), np.uint8),
        np.zeros((2, 3), np.uint8),
        np.zeros((1, 2, 3, 3), np.uint8),
    ],
)
def test_pictures_of_another_type_or_shape_are_refused(image):
    message = (
        r"^image of shape .* and type .*, expected uint8 \(H, W, 3\) RGB, \(H, W, 1\) gray or "
    )
    with pytest.raises(UserError, match=message):
        pictures.grid([[image]])
    with pytest.raises(UserError, match=message):
        pictures.overlay(image, LABEL, PALETTE)


@pytest.mark.parametrize(("channels", "visible"), [(1, 1), (2, 1), (3, 3), (5, 3)])
def test_of_many_channels_the_first_are_shown(channels, visible):
    image = np.arange(6 * channels, dtype=np.uint8).reshape(2, 3, channels)
    np.testing.assert_array_equal(pictures.shown(image), image[..., :visible])
    blended = pictures.overlay(image, LABEL, PALETTE)
    np.testing.assert_array_equal(blended, pictures.overlay(image[..., :visible], LABEL, PALETTE))


def test_shapes_that_would_be_broadcast_are_refused():
    message = r"^label of shape \(1, 3\), expected \(2, 3\) as of the other picture$"
    with pytest.raises(UserError, match=message):
        pictures.overlay(np.zeros((2, 3, 3), np.uint8), LABEL[:1], PALETTE)
    with pytest.raises(UserError, match=message):
        pictures.errors(LABEL[:1], LABEL)
    with pytest.raises(UserError, match=r"type float64, expected integers \(H, W\)"):
        pictures.errors(LABEL, LABEL / 255)


@pytest.mark.parametrize(
    ("values", "greatest"),
    [
        (np.full((2, 3), 200, np.uint8), 1.0),
        (np.zeros((2, 3, 1)), 1.0),
        (np.full((2, 3), -0.5), 1.0),
        (np.full((2, 3), np.nan), 1.0),
        (np.zeros((2, 3)), 0.0),
    ],
)
def test_values_that_are_no_heat_are_refused(values, greatest):
    with pytest.raises(UserError, match=r"^values .*, expected "):
        pictures.heat(values, greatest)


def test_gray_images_are_drawn_and_laid_under_labels():
    gray = np.array([[[0], [100]]], np.uint8)
    sheet = pictures.grid([[gray]], cell_width=2)
    found = {sheet.getpixel((x, y)) for x in range(sheet.width) for y in range(sheet.height)}
    assert found == {(255, 255, 255), (0, 0, 0), (100, 100, 100)}
    laid = pictures.overlay(gray, np.array([[0, 255]]), [(20, 40, 60)])
    np.testing.assert_array_equal(laid, [[[10, 20, 30], [100, 100, 100]]])
