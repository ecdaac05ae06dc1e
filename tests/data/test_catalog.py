"""Datasets of TFDS: tiny ones with the features of the presets; splits, values and traps."""

import io
import re

import numpy as np
import pytest
import tensorflow_datasets as tfds
from PIL import Image
from tensorflow_datasets.core import registered

from segjax import config as configs
from segjax.cli.main import main
from segjax.data import datasets
from segjax.data.catalog import Options
from segjax.sweep import costs
from support.errors import refusal
from support.runs import TINY

SPLITS = {"train": 10, "validation": 3, "test": 4}


def encoded(pixels, kind="PNG"):
    content = io.BytesIO()
    Image.fromarray(pixels).save(content, kind)
    content.seek(0)
    return content


def store(data_dir, dataset, features, example, file_format="array_record", config=None):
    """Prepare a dataset as TFDS would: `example(k)` of each of `SPLITS`."""
    options = [tfds.core.BuilderConfig(name=config, version="1.0.0")] if config else []
    with registered.skip_registration():

        class Tiny(tfds.core.GeneratorBasedBuilder):
            name = dataset
            VERSION = tfds.core.Version("4.0.0" if dataset == "oxford_iiit_pet" else "1.0.0")
            BUILDER_CONFIGS = options
            url_infos = None

            def _info(self):
                return tfds.core.DatasetInfo(
                    builder=self, features=tfds.features.FeaturesDict(features)
                )

            def _split_generators(self, dl_manager):
                return {split: self._generate_examples(split) for split in SPLITS}

            def _generate_examples(self, split):
                for k in range(SPLITS[split]):
                    yield f"{split}{k}", example(split, k)

        Tiny(data_dir=data_dir, file_format=file_format).download_and_prepare()


PET = {
    "image": tfds.features.Image(encoding_format="jpeg"),
    "label": tfds.features.ClassLabel(num_classes=37),
    "species": tfds.features.ClassLabel(names=["Cat", "Dog"]),
    "file_name": tfds.features.Text(),
    "segmentation_mask": tfds.features.Image(shape=(None, None, 1), use_colormap=True),
    "head_bbox": tfds.features.BBoxFeature(),
}


def pet(split, k, value=1):
    mask = np.full((20 + k, 30), 2, np.uint8)
    mask[5:10, 5:15] = value
    mask[10, 5:15] = 3
    return {
        "image": encoded(np.full((20 + k, 30, 3), 100 + 5 * k, np.uint8), "JPEG"),
        "label": 0,
        "species": 1,
        "file_name": f"{split}_{k}.jpg",
        "segmentation_mask": encoded(mask),
        "head_bbox": tfds.features.BBox(0.0, 0.0, 1.0, 1.0),
    }


@pytest.fixture
def pets(tmp_path, monkeypatch):
    monkeypatch.setenv("TFDS_DATA_DIR", str(tmp_path))
    store(tmp_path, "oxford_iiit_pet", PET, pet)
    return tmp_path


def test_the_preset_of_oxford_iiit_pet(pets):
    name = "tfds:oxford_iiit_pet"
    info = datasets.info(name, resolution=(24, 32))
    assert (info.name, info.class_names) == (name, ("Background", "Pet"))
    sizes = {split: of.num_images for split, of in info.splits.items()}
    assert sizes == {"train": 8, "val": 2, "test": 4}
    assert info.splits["test"].pixel_counts[1] == 4 * 50
    assert info.splits["test"].void_pixels == 4 * 10
    source = datasets.open_split(name, "test")
    example = source[0]
    names = sorted(name.split("_", 1)[1] for name in source.names)
    assert names == [f"test_{k}.jpg" for k in range(4)]
    expected = np.zeros(example["image"].shape[:2], np.uint8)
    expected[5:10, 5:15], expected[10, 5:15] = 1, 255
    np.testing.assert_array_equal(example["label"], expected, strict=True)
    assert np.abs(example["image"].astype(int) - 5 * len(example["image"])).max() <= 1
    # No image is in two splits.
    names = [
        name.split("_", 1)[1]
        for split in info.splits
        for name in datasets.open_split("tfds:oxford_iiit_pet", split).names
    ]
    assert len(set(names)) == len(names) == 14
    assert datasets.shape(name) == (3, 2)


def test_three_classes_and_other_splits(pets):
    options = Options(
        classes=(("Pet", 1), ("Rest", 2, 3)), splits=("train[:5]", "train[5:]", "validation")
    )
    place = {"options": options, "resolution": (24, 32)}
    info = datasets.info("tfds:oxford_iiit_pet", **place)
    assert [of.num_images for of in info.splits.values()] == [5, 5, 3]
    assert info.splits["train"].void_pixels == 0
    assert info.class_names == ("Pet", "Rest")


CITY = {
    "image_id": tfds.features.Text(),
    "image_left": tfds.features.Image(shape=(1024, 2048, 3), encoding_format="png"),
    "segmentation_label": tfds.features.Image(
        shape=(1024, 2048, 1), encoding_format="png", use_colormap=True
    ),
}


def city(split, k):
    mask = np.repeat(np.arange(34, dtype=np.uint8), 61)[:2048]
    mask = np.broadcast_to(np.pad(mask, (0, 2048 - len(mask))), (1024, 2048))
    image = np.full((1024, 2048, 3), 7 * k, np.uint8)
    return {
        "image_id": f"aachen_{k}",
        "image_left": encoded(image),
        "segmentation_label": encoded(mask),
    }


def test_the_preset_of_cityscapes(tmp_path, monkeypatch):
    monkeypatch.setenv("TFDS_DATA_DIR", str(tmp_path))
    monkeypatch.setitem(SPLITS, "train", 2)
    monkeypatch.setitem(SPLITS, "validation", 1)
    monkeypatch.setitem(SPLITS, "test", 1)
    store(tmp_path, "cityscapes", CITY, city, config="semantic_segmentation")
    name = "tfds:cityscapes/semantic_segmentation"
    info = datasets.info(name, resolution=(64, 128))
    assert {split: of.num_images for split, of in info.splits.items()} == {"train": 2, "val": 1}
    # The 19 train ids: road is label id 7, bicycle 33; every other of the 34 ids is void.
    train_ids = (7, 8, 11, 12, 13, 17, *range(19, 29), 31, 32, 33)
    label = datasets.open_split(name, "val")[0]["label"]
    for label_id in range(34):
        expected = train_ids.index(label_id) if label_id in train_ids else 255
        assert label[500, 61 * label_id + 30] == expected
    assert len(info.class_names) == 19
    assert info.palette[info.class_names.index("Car")] == (0, 0, 142)


def test_a_stray_value_is_named_with_split_example_and_place(tmp_path):
    store(tmp_path, "oxford_iiit_pet", PET, lambda split, k: pet(split, k, 4 if k == 1 else 1))
    said = refusal(datasets.info, "tfds:oxford_iiit_pet", data_dir=tmp_path, resolution=(24, 32))
    assert "tfds:oxford_iiit_pet train[:80%], example " in said
    assert "_train_1.jpg): 50 pixels, the first at row 5, column 5, with the value 4, " in said
    assert said.endswith("expected a value of data.tfds.classes or data.tfds.void")


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"image": "photo"}, "'data.tfds.image' is 'photo', but the images of tfds:oxford_iiit_"),
        ({"image": "label"}, "are image, segmentation_mask"),
        ({"mask": "image"}, "'data.tfds.mask' is 'image', of 3 channels"),
        ({"classes": (("Pet",),)}, "'data.tfds.classes' is (('Pet',),), expected the name and"),
        ({"classes": ((1, "Pet"),)}, "expected the name and value of each class"),
        ({"classes": (("A", 1), ("B", 1))}, "expected 1 to be of one class"),
        ({"classes": (("A", 1), ("A", 2))}, "expected different names"),
        ({"classes": (("", 1), ("A", 2))}, "expected different names"),
        ({"void": (1,)}, "'data.tfds.void' is (1,), expected no value of a class, but [1] is one"),
        ({"void": ("a",)}, "expected integers"),
        ({"splits": ("train",)}, "'data.tfds.splits' is ('train',), expected train, val and"),
        ({"splits": ("train", "dev")}, "'data.tfds.splits' has 'dev', but the splits of tfds:"),
        ({"splits": ("train[:60%]", "train[50%:]")}, "train and val share examples"),
    ],
)
def test_options_that_do_not_suit_are_refused(pets, options, said):
    message = refusal(
        datasets.info, "tfds:oxford_iiit_pet", options=Options(**options), resolution=(24, 32)
    )
    assert said in message


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("voc", "dataset tfds:voc cannot be used: it has boxes, no masks"),
        ("voc/2012", "it has boxes, no masks; make a folder"),
        ("scene_parse150", "its masks are of instances (annotations_instance.tar)"),
        ("", "has no name"),
        ("no_such", "TFDS cannot open it: Dataset no_such not found."),
        ("oxford_iiit_pet", "--file_format=array_record --data_dir="),
        ("cityscapes", "download its files by hand, then prepare it once with tfds build"),
    ],
)
def test_traps_and_what_is_not_prepared_are_named(tmp_path, name, said):
    message = refusal(datasets.info, f"tfds:{name}", data_dir=tmp_path, resolution=(24, 32))
    assert said in message


def test_a_dataset_that_is_no_array_record_is_refused(pets):
    path = pets / "oxford_iiit_pet" / "4.0.0" / "dataset_info.json"
    path.write_text(path.read_text().replace("array_record", "tfrecord"))
    said = refusal(datasets.info, "tfds:oxford_iiit_pet", resolution=(24, 32))
    assert "4.0.0 is stored as tfrecord, expected array_record: prepare it again with tfds" in said
    path.write_text("{")
    said = refusal(datasets.info, "tfds:oxford_iiit_pet", resolution=(24, 32))
    assert "TFDS cannot open it" in said


def test_a_damaged_record_is_named(pets):
    (path,) = (pets / "oxford_iiit_pet" / "4.0.0").glob("*-train.array_record*")
    content = bytearray(path.read_bytes())
    for place in range(1000, len(content) // 2, 500):
        content[place] ^= 1
    path.write_bytes(content)
    said = refusal(datasets.info, "tfds:oxford_iiit_pet", resolution=(24, 32))
    assert re.search(r"tfds:oxford_iiit_pet train\[:80%\], example \d cannot be read: ", said)


def test_a_dataset_without_a_preset_needs_classes(tmp_path):
    store(tmp_path, "lakes", PET, pet)
    place = {"data_dir": tmp_path, "resolution": (24, 32)}
    assert "'data.tfds.classes' is (), expected" in refusal(datasets.info, "tfds:lakes", **place)
    options = Options(classes=(("A", 1, 2),), void=(3,))
    info = datasets.info("tfds:lakes", **place, options=options)
    assert list(info.splits) == ["train", "val", "test"]


def test_a_config_keeps_the_options_and_older_configs_their_digest(tmp_path):
    spec = "experiments/quickstart.py:smoke"
    plain = configs.load(spec, {})
    given = {
        "data.dataset": "tfds:lakes",
        "data.tfds.classes": "(('A', 1), ('B', 2, 3))",
        "data.tfds.void": "(9,)",
        "data.tfds.splits": "('train[:80%]', 'train[80%:]')",
        "data.tfds.mask": "mask",
    }
    config = configs.load(spec, given)
    assert config.data.tfds.classes == (("A", 1), ("B", 2, 3))
    again = configs.restore(configs.flat(config))
    assert configs.digest(again) == configs.digest(config) != configs.digest(plain)
    older = {
        name: value
        for name, value in configs.flat(plain).items()
        if not name.startswith("data.tfds") and name != "data.fit"
    }
    assert configs.digest(configs.restore(older)) == configs.digest(plain)
    for name in ("classes", "splits"):
        said = refusal(configs.load, spec, {f"data.tfds.{name}": given[f"data.tfds.{name}"]})
        assert "only used where data.dataset is tfds:NAME" in said


@pytest.mark.slow
def test_a_tfds_dataset_is_trained_and_evaluated_from_its_workdir(pets, tmp_path, capsys):
    workdir = tmp_path / "run"
    train = ["train", "--config", TINY, "--workdir", str(workdir)]
    train += ["--config.data.dataset=tfds:oxford_iiit_pet", "--config.data.resolution=24,32"]
    train += ["--config.data.fit=letterbox"]
    assert main(train) == 0
    assert main(["evaluate", "--workdir", str(workdir), "--split", "val"]) == 0
    assert "Pet" in capsys.readouterr().out
    assert (
        main([*train[:3], "--workdir", str(tmp_path / "b"), "--config.data.dataset=tfds:voc"]) == 2
    )
    assert "boxes, no masks" in capsys.readouterr().err


def test_images_of_16_bits_are_refused(tmp_path):
    features = {
        "image": tfds.features.Image(shape=(None, None, 1), dtype=np.uint16),
        "segmentation_mask": tfds.features.Image(shape=(None, None, 1)),
    }

    def example(split, k):
        image = encoded(np.full((8, 8), 40000, np.uint16))
        return {"image": image, "segmentation_mask": encoded(np.zeros((8, 8), np.uint8))}

    store(tmp_path, "deep", features, example)
    options = Options(classes=(("Ground", 0),))
    said = refusal(
        datasets.info, "tfds:deep", data_dir=tmp_path, options=options, resolution=(8, 8)
    )
    assert said == (
        "config field 'data.tfds.image' is 'image', of uint16 in tfds:deep, expected uint8"
    )


def test_the_cost_of_a_run_on_a_dataset_in_a_folder_of_its_own(pets, tmp_path, monkeypatch):
    monkeypatch.setenv("TFDS_DATA_DIR", str(tmp_path / "elsewhere"))
    config = configs.default()
    config.data.update({"dataset": "tfds:oxford_iiit_pet", "data_dir": str(pets)})
    config.data.resolution = (24, 32)
    assert costs.training_cost(config).macs > 0
