"""Published results: consistency with the papers, and errors of bad records."""

import json
from decimal import Decimal

import pytest

from segjax.results import published
from support.errors import refusal

DATA = published.shipped()
RAW = json.loads(published.FILE.read_text())
PRINTED = Decimal("0.051")  # means are printed with one decimal


def of(group, **fields):
    return [
        record
        for record in DATA.records
        if record.group == group
        and all(getattr(record, name) == value for name, value in fields.items())
    ]


def mean(numbers):
    """Return the mean over the printed classes; Local Label Descriptors has ten."""
    known = [number for number in numbers.values() if number is not None]
    return sum(known) / Decimal(len(known))


def test_every_published_table_is_complete():
    assert [len(of(group)) for group in published.GROUPS] == [7, 3, 3, 12, 25, 32, 18, 4]
    for weights in ("median frequency", "natural"):
        for split in ("test", "train"):
            lines = of("table1", class_weights=weights, split=split)
            assert len({record.model for record in lines}) == len(lines) == 8
    assert [r.iterations for r in of("table3", method="SegNet")][:2] == ["40K", "80K"]


def test_the_eleven_classes_are_those_of_the_dataset():
    from segjax.data import camvid

    assert set(published.CLASSES) == set(camvid.CLASS_NAMES)
    assert len(published.CLASSES) == 11


def test_scores_are_keyed_by_class_names():
    (segnet,) = of("network", source="SegNet paper, Table 2")
    assert segnet.per_class_accuracy["Building"] == Decimal("89.6")
    assert segnet.per_class_accuracy["SignSymbol"] == Decimal("52.7")
    assert segnet.per_class_accuracy["Pavement"] == Decimal("93.3")
    assert str(segnet.scores["global_accuracy"]) == "90.40"  # with the digits of the paper
    (basic,) = of("reimplementation", source="chainercv")
    assert basic.per_class_iou["Sky"] == Decimal("86.8")
    assert basic.per_class_iou["Pole"] == Decimal("18.0")


def test_accuracies_per_class_average_to_their_mean():
    checked = [record for record in DATA.records if record.per_class_accuracy]
    assert len(checked) == 9
    for record in checked:
        found = mean(record.per_class_accuracy)
        assert abs(found - record.scores["class_accuracy"]) <= PRINTED, record.method


def test_ious_per_class_average_to_their_mean():
    checked = [r for r in DATA.records if r.per_class_iou and r.scores["mean_iou"]]
    assert len(checked) == 10
    for record in checked:
        apart = abs(mean(record.per_class_iou) - record.scores["mean_iou"])
        assert (apart > PRINTED) == (record.method == "Dilation8"), record.method
    (dilation,) = [record for record in checked if record.method == "Dilation8"]
    right = mean({**dilation.per_class_iou, "Sky": Decimal("89.9")})
    assert abs(right - dilation.scores["mean_iou"]) <= PRINTED
    assert "Sky" in dilation.sic


def test_suspect_values_are_flagged_and_explained():
    suspects = {(r.method, r.source, r.sic) for r in DATA.records if r.sic}
    tiramisu = "Tiramisu paper, Table 3"
    assert suspects == {
        ("SegNet", tiramisu, ("global_accuracy",)),
        ("Dilation8", tiramisu, ("global_accuracy", "Sky")),
        ("DeconvNet", "SegNet paper, Table 6", ("model_mb",)),
    }
    assert all(record.notes for record in DATA.records if record.sic)


def test_megabytes_are_four_bytes_a_parameter():
    """117, 83 and 539 MB follow from the layer lists; 877 from none, and is flagged."""
    listed = {
        "SegNet": (29_449_355,),
        "DeepLab-LargeFOV": (20_495_179,),
        "FCN (learnt deconv)": (134_348_929, 134_801_227),
        "DeconvNet": (81_917_259, 251_805_003),
    }
    for record in of("cost"):
        fits = any(
            abs(4e-6 * count - record.cost["model_mb"]) <= 2 for count in listed[record.method]
        )
        assert fits == ("model_mb" not in record.sic), record.method


def test_only_the_benchmark_of_367_is_called_ours():
    for record in DATA.records:
        if record.protocol == "ours" and record.scores:
            assert record.training_images == DATA.protocol.training_images == 367
            assert record.resolution == DATA.protocol.resolution == (360, 480)
    tables_2_and_3 = of("table3") + of("network", source="SegNet paper, Table 2")
    for record in tables_2_and_3:
        assert (record.protocol, record.training_images) == ("differs", 3433)
    for name in ("Dilation8", "DeepLab-LFOV"):
        (record,) = of("tiramisu", method=name)
        assert (record.protocol, record.resolution) == ("differs", (480, 640))


def test_one_row_of_segnet_is_printed_twice_with_two_weightings():
    (table_2,) = of("network", method="SegNet", source="SegNet paper, Table 2")
    table_3 = of("table3", method="SegNet")[-1]
    assert table_2.scores == table_3.scores
    shared = set(table_2.notes) & set(table_3.notes)
    assert any("balancing" in note for note in shared)


def test_findings_of_table_1_hold_in_the_data():
    """Statements in the text of the paper, which a shifted column would break."""
    test = {
        weights: {r.method: r.scores for r in of("table1", class_weights=weights, split="test")}
        for weights in ("median frequency", "natural")
    }
    balanced, natural = test["median frequency"], test["natural"]
    for scores in test.values():
        assert min(scores, key=lambda name: scores[name]["mean_iou"]) == "Bilinear-Interpolation"
    assert max(balanced, key=lambda n: balanced[n]["mean_iou"]) == "FCN-Basic-NoDimReduction"
    for name in balanced:
        gain = balanced[name]["class_accuracy"] - natural[name]["class_accuracy"]
        assert Decimal("4.7") <= gain <= Decimal("8.6")
    for record in of("table1", split="train"):
        assert record.scores["boundary_f"] is None
        assert record.scores["global_accuracy"] > 89


def test_what_the_source_does_not_say_is_not_noted_as_said():
    (fcn,) = (r for r in RAW["records"] if r["method"] == "FCN8")
    assert fcn["notes"] == ["mean of batches"]  # the network has no batch normalization
    (largefov,) = (r for r in RAW["records"] if r["method"] == "DeepLab-LFOV")
    (note,) = largefov["notes"]
    assert RAW["notes"][note].startswith("Probably trained and tested at 480x640 pixels")


def test_every_source_and_note_is_used():
    assert {r["source"] for r in RAW["records"]} == set(RAW["sources"])
    assert {note for r in RAW["records"] for note in r["notes"]} == set(RAW["notes"])
    assert "[M]" not in published.FILE.read_text()


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"scores": {"mean_iou": 50}}, "scores has ['mean_iou'], expected ["),
        ({"verified": "M"}, "verified is \"M\", expected 'V' or 'V2'"),
        ({"protocol": "differs", "notes": []}, "expected a note that says why"),
        ({"notes": ["nobody"]}, "notes has 'nobody', expected quoted, "),
        ({"source": "hearsay"}, "source has 'hearsay', expected SegNet paper, "),
        ({"group": "table9"}, "group has 'table9', expected unary, "),
        ({"color": 1}, "color is not a field"),
        ({"per_class_accuracy": [1, 2]}, "expected 11 percentages"),
        ({"per_class_accuracy": [101] * 11}, "Building is 101, expected a percentage"),
        ({"per_class_accuracy": [None] * 11}, "expected 11 percentages"),
        ({"sic": ["Dog"]}, "sic has 'Dog', expected global_accuracy, "),
        ({"training_images": 0}, "training_images is 0"),
        ({"resolution": [360]}, "resolution[1] is missing"),
        ({"split": None}, "expected either scores and their split, or cost"),
        ({"method": ""}, 'method is "", expected at least 1 character'),
        ({"cost": {}}, "cost has [], expected ["),
    ],
)
def test_a_bad_record_is_named(tmp_path, change, said):
    path = tmp_path / "published.json"
    path.write_text(json.dumps(RAW | {"records": [RAW["records"][0] | change]}))
    message = refusal(published.load, path)
    assert said in message
    assert message.startswith(f"{path}: record 1 (")


@pytest.mark.parametrize("name", ["method", "group", "source", "verified", "protocol", "notes"])
def test_a_missing_field_is_named(tmp_path, name):
    record = {key: value for key, value in RAW["records"][0].items() if key != name}
    path = tmp_path / "published.json"
    path.write_text(json.dumps(RAW | {"records": [record]}))
    assert f"{name} is missing" in refusal(published.load, path)


def test_unknown_classes_and_records_without_figures_are_refused(tmp_path):
    path = tmp_path / "published.json"
    path.write_text(json.dumps(RAW | {"classes": RAW["classes"][::-1]}))
    assert "classes are" in refusal(published.load, path)
    record = {key: value for key, value in RAW["records"][0].items() if key != "scores"}
    path.write_text(json.dumps(RAW | {"records": [record]}))
    assert "expected either scores and their split, or cost" in refusal(published.load, path)
