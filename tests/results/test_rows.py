import copy
import json
import os
import re
import subprocess

import numpy as np
import pytest

from segjax import results
from segjax.results.counts import Counts
from support.errors import refusal
from support.rows import make_baseline, make_row


def refused(folder, row):
    """Return the message of the row that cannot be written."""
    message = refusal(results.write_row, folder / "r.json", row)
    assert not (folder / "r.json").exists()
    return message


def test_written_rows_are_read_back_from_every_kind_of_place(tmp_path):
    rows = [make_row(0), make_row(1), make_baseline()]
    for k, row in enumerate(rows):
        results.write_row(tmp_path / f"runs/{k}/result.json", row)
        results.append(tmp_path / "rows/small.jsonl", row)
    (tmp_path / "runs/0/metrics.jsonl").write_text('{"step": 1}\n')
    assert results.read([tmp_path / "runs"]) == rows
    assert results.read([tmp_path / "runs/1", tmp_path / "runs/0/result.json"]) == [
        rows[1],
        rows[0],
    ]
    assert results.read([tmp_path / "rows"]) == rows
    assert results.read([str(tmp_path / "rows/small.jsonl")]) == rows


def test_a_file_is_read_once(tmp_path):
    results.write_row(tmp_path / "runs/0/result.json", make_row())
    assert len(results.read([tmp_path, tmp_path / "runs", tmp_path / "runs/0/result.json"])) == 1


def test_links_are_followed_and_each_file_is_read_once(tmp_path):
    results.write_row(tmp_path / "elsewhere/run/result.json", make_row(0))
    results.write_row(tmp_path / "runs/own/result.json", make_row(1))
    runs = tmp_path / "runs"
    (runs / "linked").symlink_to(tmp_path / "elsewhere/run")
    (runs / "twin").symlink_to(runs / "own")
    (runs / "own/loop").symlink_to(runs)
    (runs / "file").mkdir()
    (runs / "file/result.json").symlink_to(tmp_path / "elsewhere/run/result.json")
    found = results.read_files([runs])
    assert sorted(row["seed"] for rows in found.values() for row in rows) == [0, 1]
    assert sorted(row["seed"] for row in results.read([tmp_path])) == [0, 1]


def test_runs_without_result_and_files_left_out_are_named(tmp_path, capsys):
    results.write_row(tmp_path / "done/result.json", make_row(0))
    results.append(tmp_path / "more.jsonl", make_row(1))
    results.append(tmp_path / "below/other.jsonl", make_row(1))
    for name in ("b", "a"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "config.json").write_text("{}")
        (tmp_path / name / "phases.jsonl").write_text('{"phase": "start"}')
        (tmp_path / name / "metrics.jsonl").write_text('{"step": 1}')
    (tmp_path / "failed").mkdir()
    (tmp_path / "failed/error.txt").write_text("killed")
    assert [row["seed"] for row in results.read([tmp_path])] == [0]
    assert capsys.readouterr().err.splitlines() == [
        f"segjax: warning: {tmp_path}: 3 runs unfinished: a, b, failed",
        f"segjax: warning: {tmp_path}: not read unless named: below/other.jsonl, more.jsonl",
    ]
    # Of an unfinished run alone, whose logs are no rows.
    message = refusal(results.read, [tmp_path / "a"])
    assert message.startswith(f"{tmp_path / 'a'}: no results (1 run unfinished: a), expected")


def test_empty_files_and_unreadable_folders_are_named(tmp_path, capsys, monkeypatch):
    results.append(tmp_path / "rows.jsonl", make_row())
    (tmp_path / "empty.jsonl").write_text("")
    (tmp_path / "secret").mkdir()
    scandir = os.scandir

    def denied(path):
        if str(path).endswith("secret"):
            raise PermissionError(13, "Permission denied", str(path))
        return scandir(path)

    monkeypatch.setattr(os, "scandir", denied)
    assert len(results.read([tmp_path])) == 1
    assert capsys.readouterr().err.splitlines() == [
        f"segjax: warning: {tmp_path}: {tmp_path / 'secret'}: Permission denied",
        f"segjax: warning: {tmp_path}: empty.jsonl has no row",
    ]


def test_a_result_of_another_program_is_named(tmp_path):
    results.write_row(tmp_path / "run/result.json", make_row())
    (tmp_path / "other").mkdir()
    (tmp_path / "other/result.json").write_text('{"accuracy": 0.5}')
    assert refusal(results.read, [tmp_path]).startswith(f"{tmp_path / 'other/result.json'}: schema")


def test_an_error_for_no_results_names_the_path(tmp_path):
    (tmp_path / "metrics.jsonl").write_text('{"step": 1}\n')
    assert refusal(results.read, [tmp_path]).startswith(f"{tmp_path}: no results")
    (tmp_path / "rows.jsonl").write_text("\n")
    assert refusal(results.read, [tmp_path]).startswith(f"{tmp_path}: empty")
    assert "no such file" in refusal(results.read, [tmp_path / "missing"])


def test_every_cut_of_a_row_is_refused_with_its_line(tmp_path):
    path = tmp_path / "rows.jsonl"
    whole, cut = json.dumps(make_row(0)), json.dumps(make_row(1))
    for length in range(1, len(cut)):
        path.write_text(whole + "\n" + cut[:length])
        assert refusal(results.read, [path]).startswith(f"{path}:2: damaged at column ")


def test_a_cut_result_names_the_line_it_ends_in(tmp_path):
    path = tmp_path / "result.json"
    results.write_row(path, make_row())
    lines = path.read_text().splitlines()
    path.write_text("\n".join(lines[:7]))
    assert refusal(results.read, [path]).startswith(f"{path}:7: damaged")


@pytest.mark.parametrize("name", list(make_row()))
def test_a_missing_or_ill_typed_field_is_named(tmp_path, name):
    path = tmp_path / "rows.jsonl"
    row = make_row()
    del row[name]
    path.write_text(json.dumps(row))
    assert refusal(results.read, [path]).startswith(f"{path}:1: {name} is missing")
    for wrong in (True, -1.5, [["x"]], ""):
        path.write_text(json.dumps(make_row() | {name: wrong}))
        # Of a list, the entry that is wrong.
        pattern = rf"{re.escape(str(path))}:1: {name}(\[0\])* is (.+), expected "
        found = re.match(pattern, refusal(results.read, [path]))[2]
        assert found in map(json.dumps, (wrong, ["x"], "x"))


@pytest.mark.parametrize(
    ("name", "place"),
    [
        ("global_accuracy", None),
        ("class_accuracy", None),
        ("mean_iou", None),
        ("per_class_accuracy", 1),
        ("per_class_iou", 2),
    ],
)
def test_an_edited_score_is_detected(tmp_path, name, place):
    path = tmp_path / "result.json"
    for change, is_refused in ((1e-8, True), (-1e-8, True), (1e-11, False)):
        row = copy.deepcopy(make_row())
        if place is None:
            row[name] += change
        else:
            row[name][place] += change
        path.write_text(json.dumps(row))
        if is_refused:
            message = refusal(results.read, [path])
            assert f"{path}: {name}" in message
            assert "its confusion matrix gives" in message
        else:
            assert results.read([path]) == [row]


def test_an_edited_count_or_presence_is_detected(tmp_path):
    row = make_row()
    row["confusion"][0][0] += 1
    assert "its confusion matrix gives" in refused(tmp_path, row)
    row = make_row(present=[True, True, False])
    message = refused(tmp_path, row)
    assert "present of Pole is false, its confusion matrix gives true" in message


@pytest.mark.parametrize("count", [-1, 1.0, True, "3", None, 2**53])
def test_counts_are_non_negative_integers(tmp_path, count):
    row = make_row()
    row["confusion"][2][1] = count
    assert "confusion[2][1] is" in refused(tmp_path, row)


@pytest.mark.parametrize("name", ["per_class_accuracy", "per_class_iou", "present", "confusion"])
def test_lengths_agree_with_the_class_names(tmp_path, name):
    row = make_row()
    row[name] = row[name][:2]
    assert f"{name} has 2 entries, expected 3" in refused(tmp_path, row)


def test_measured_fields_are_read_back_and_checked(tmp_path):
    confusion = np.array([[[8, 2, 0], [1, 9, 0], [0, 0, 0]], [[3, 1, 0], [0, 4, 0], [0, 0, 0]]])
    bins = np.zeros((2, 15, 3))
    bins[0, 12], bins[1, 14] = (20, 17, 17.0), (8, 7, 7.5)
    bands = np.array([[[3, 4], [0, 2], [0, 5]], [[2, 4], [4, 4], [0, 0]]])
    counts = Counts(confusion, boundary_iou=bands, calibration=bins)
    measured = results.measured(counts)
    assert measured["boundary_iou"] == pytest.approx((5 / 8 + 4 / 6) / 2, abs=1e-15)
    assert measured["per_class_boundary_iou"] == [5 / 8, 4 / 6, None]
    assert measured["expected_calibration_error"] == pytest.approx(0.5 / 28, abs=1e-15)
    assert set(results.measured(Counts(confusion))) == {"per_image_mean_iou"}

    row = make_row(confusion=confusion.sum(0)) | measured
    results.write_row(tmp_path / "result.json", row)
    assert results.read([tmp_path]) == [row]
    for name, wrong in (
        ("per_class_boundary_iou", [0.5]),
        ("boundary_iou", 1.5),
        ("calibration", [[-1.0]]),
    ):
        assert name in refused(tmp_path, row | {name: wrong})


def test_class_names_differ(tmp_path):
    row = make_row(class_names=["Sky", "Road", "Sky"])
    assert "expected different names" in refused(tmp_path, row)


def test_confusion_is_square(tmp_path):
    row = make_row()
    row["confusion"][1].append(0)
    message = refused(tmp_path, row)
    assert "confusion has 4 columns in the row of Road, expected 3" in message


def test_invalid_json_is_refused(tmp_path):
    path = tmp_path / "rows.jsonl"
    text = json.dumps(make_row())
    path.write_text(text.replace('"seconds": 1201.5', '"seconds": NaN'))
    assert refusal(results.read, [path]).startswith(f"{path}:1: found NaN")
    path.write_text(text[:-1] + ', "seed": 5}')
    assert refusal(results.read, [path]).startswith(f"{path}:1: 'seed' is there twice")
    path.write_text(text.replace("camvid", r"\ud800"))
    assert "surrogates not allowed, expected a result row" in refusal(results.read, [path])
    path.write_text("[" * 100_000)
    assert "nested too deeply" in refusal(results.read, [path])
    path.write_bytes(b"\xff\xfe\n")
    assert "not UTF-8" in refusal(results.read, [path])


@pytest.mark.parametrize(
    ("old", "new"),
    [('"parameters": 357123', '"parameters": 357124'), ('"seed": 0', '"seed": 1'), ("cpu", "gpu")],
)
def test_a_changed_row_is_refused(tmp_path, old, new):
    paths = tmp_path / "result.json", tmp_path / "rows.jsonl"
    results.write_row(paths[0], make_row())
    results.append(paths[1], make_row())
    for path, place in zip(paths, (paths[0], f"{paths[1]}:1"), strict=True):
        text = path.read_text()
        assert results.read([path]) == [make_row()]
        assert old in text
        path.write_text(text.replace(old, new, 1))
        said = f"{place}: it was changed after it was written; undo that, or delete its checksum"
        assert refusal(results.read, [path]).startswith(said)


def test_append_adds_a_run_once(tmp_path):
    path = tmp_path / "rows.jsonl"
    path.write_text(json.dumps(make_row(0)))  # no newline at its end, as some editors leave it
    again = make_row(0, finished="later", seconds=1.0)
    assert results.append(path, again) is False
    assert results.append(path, make_row(1)) is True
    assert results.append(path, make_row(0, weights="segnet")) is True
    assert results.append(path, make_row(0, split="val")) is True
    assert [(row["seed"], row["split"]) for row in results.read([path])] == [
        (0, "test"),
        (1, "test"),
        (0, "test"),
        (0, "val"),
    ]


def test_append_refuses_a_second_result_of_one_run(tmp_path):
    path = tmp_path / "rows.jsonl"
    results.append(path, make_row(0))
    before = path.read_bytes()
    other = make_row(0, confusion=((81, 14, 5), (10, 180, 10), (6, 6, 8)))
    assert "another result of small" in refusal(results.append, path, other)
    assert path.read_bytes() == before


def test_the_revision_is_the_commit_and_says_if_files_were_changed(tmp_path, monkeypatch):
    def git(*arguments):
        identity = ("-c", "user.name=a", "-c", "user.email=a@b.c")
        done = subprocess.run(
            ["git", *identity, *arguments], cwd=tmp_path, capture_output=True, text=True, check=True
        )
        return done.stdout.strip()

    def revision():
        results.revision.cache_clear()
        return results.revision()

    package = tmp_path / "segjax"
    package.mkdir()
    module = package / "__init__.py"
    module.write_text("")
    monkeypatch.setattr("segjax.__file__", str(module))
    try:
        assert revision() is None
        git("init", "--quiet")
        git("add", ".")
        git("commit", "--quiet", "--message=first")
        commit = git("rev-parse", "HEAD")
        assert revision() == commit
        (tmp_path / "notes.txt").write_text("no code")
        assert revision() == commit
        module.write_text("changed = True")
        assert results.revision() == commit  # as when first asked
        assert revision() == f"{commit}-modified"
    finally:
        results.revision.cache_clear()


def test_a_file_that_is_named_is_not_said_to_be_left_out(tmp_path, capsys):
    results.write_row(tmp_path / "run" / "result.json", make_row(0))
    results.append(tmp_path / "baselines.jsonl", make_baseline())
    assert len(results.read([tmp_path, tmp_path / "baselines.jsonl"])) == 2
    assert capsys.readouterr().err == ""
    assert len(results.read([tmp_path])) == 1
    assert "not read unless named: baselines.jsonl" in capsys.readouterr().err
