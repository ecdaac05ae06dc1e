"""Makes scores.npz: scores by GNU Octave of what a trained network says about CamVid's test images.

python tests/golden/make_scores.py WORKDIR

WORKDIR is a finished run, such as that of experiments/camvid_small.py. The file holds the labels
and predictions of every tenth image and their scores; those of the whole split are compared here,
with the row in the workdir, and said. Needs `octave`.
"""

import json
import subprocess
import sys
import tempfile
from pathlib import Path

import numpy as np
from scipy.io import savemat

from segjax import metrics
from segjax.data.loader import evaluation_batches
from segjax.inference import outputs
from segjax.runs import experiment

HERE = Path(__file__).parent


def octave(labels, predictions, num_classes):
    """G, C, mIoU, the recall of each class and its IoU."""
    with tempfile.TemporaryDirectory() as folder:
        path = f"{folder}/maps.mat"
        savemat(path, {"labels": labels, "predictions": predictions, "K": num_classes})
        command = ["octave", "--quiet", str(HERE / "scores.m"), path]
        printed = subprocess.run(command, check=True, capture_output=True, text=True).stdout
    return np.array(printed.split(), np.float64)


def main(workdir):
    run, _ = experiment.open_run(workdir, None)
    variables, _ = experiment.load_variables(run, workdir, None)
    source = run.open_split("test")
    predictor = outputs.build_predictor(run)
    labels, predictions = [], []
    for batch in evaluation_batches(source, 8):
        labels.append(batch["label"])
        predictions.append(np.asarray(predictor(variables, batch["image"])))
    labels, predictions = (
        np.concatenate(x)[: len(source)].astype(np.uint8) for x in (labels, predictions)
    )
    row = json.loads((workdir / "result.json").read_text())
    whole = octave(labels, predictions, len(row["class_names"]))
    ours = [row[name] for name in metrics.SCORES]
    ours += row["per_class_accuracy"] + row["per_class_iou"]
    apart = np.abs(whole - ours).max()
    sys.stdout.write(f"{len(labels)} images, greatest difference from the row: {apart:.2g}\n")
    some = slice(None, None, 10)
    np.savez_compressed(
        HERE / "scores.npz",
        labels=labels[some],
        predictions=predictions[some],
        scores=octave(labels[some], predictions[some], len(row["class_names"])),
    )


if __name__ == "__main__":
    main(Path(sys.argv[1]))
