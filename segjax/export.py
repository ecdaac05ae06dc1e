"""Export a trained network: weights to share, or a program that runs without segjax."""

import json
import tempfile
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp

from segjax import results
from segjax.data import datasets
from segjax.data.builders import Builder
from segjax.errors import UserError
from segjax.inference import outputs
from segjax.ops.platform import shapes_only
from segjax.results.schema import Row
from segjax.runs import experiment, hub, weights
from segjax.runs.experiment import Experiment, load_variables, open_run
from segjax.system.files import write_whole

PROGRAM = "model.stablehlo"
PLATFORMS = ("cpu", "cuda", "tpu")

_CARD = """\
---
library_name: segjax
pipeline_tag: image-segmentation
---

# {title}

A network for semantic segmentation, trained with segjax.

| | |
| --- | --- |
{facts}

| score, IoU of a class | percent |
| --- | ---: |
{scores}

Predict with it:

```sh
segjax predict --workdir hf:{name} IMAGE --output DIR
```

Train it again:

```sh
{command}
```
"""


def export(
    workdir: Path,
    output: Path,
    form: str = "safetensors",
    *,
    kind: str | None = None,
    size: tuple[int, int] | None = None,
    logits: bool = False,
) -> Path:
    """Write a network into a folder, beside its config.json and the result.json of final weights.

    The folder of `safetensors` can be opened wherever a run directory can. `data.data_dir`, a path
    on this machine, is left out of its config.

    Args:
      workdir: a run directory, an exported folder, or `hf:user/name`.
      output: the folder, created if missing.
      form: `safetensors`: float32 weights (`segjax.runs.weights`); `stablehlo`: see `program`.
      kind: final, best or latest checkpoint; None: final if it exists, otherwise best.
      size, logits: of `program`.

    Returns:
      The path of the network's file.

    Raises:
      UserError: there is no such run or checkpoint, or the output is a run directory or holds the
        export of another config.
    """
    workdir = hub.locate(workdir)
    if (output / "checkpoints").exists():
        raise UserError(f"{output} is a run directory, expected another folder for the export")
    run, description = open_run(workdir, None)
    experiment.refuse_other_config(run.config, output)
    variables, facts = load_variables(run, workdir, kind)
    if form == "safetensors":
        path = output / weights.FILE
        weights.write(path, variables, facts)
    else:
        path = output / PROGRAM
        write_whole(path, program(run, variables, size, logits))
    with run.config.unlocked():
        run.config.data.data_dir = ""
    experiment.write_description(output, run, description)
    if form != "safetensors" and (output / weights.FILE).exists():
        return path  # result.json is that of the weights
    if (workdir / "result.json").is_file() and facts["kind"] == "final":
        write_whole(output / "result.json", (workdir / "result.json").read_bytes())
    else:  # that of another checkpoint may be there
        (output / "result.json").unlink(missing_ok=True)
    return path


def program(
    run: Experiment, variables: Any, size: tuple[int, int] | None = None, logits: bool = False
) -> bytes:
    """Return a network, weights inside, as a serialized `jax.export.Exported` of StableHLO.

    It maps images, uint8 (B, H, W, C) with any B, to labels, uint8 (B, H, W), those of
    `segjax predict --native` up to rounding, and is lowered for `PLATFORMS` without any kernel of
    ours:

        jax.export.deserialize(bytearray(open("model.stablehlo", "rb").read())).call(images)

    Args:
      run: owner of the network.
      variables: of the network.
      size: (H, W); None: the resolution of training.
      logits: return float32 (B, H, W, K), whose greatest is the label.
    """
    size = size or tuple(run.config.data.resolution)
    output = outputs.logits(run)
    constants = jax.device_get(variables)

    def network(images):
        places = jnp.arange(images.shape[0], dtype=jnp.int32)
        values = output(constants, images.astype(jnp.float32) / 255, places)
        return values if logits else jnp.argmax(values, -1).astype(jnp.uint8)

    (batch,) = jax.export.symbolic_shape("batch")
    images = jax.ShapeDtypeStruct((batch, *size, len(run.info.mean)), jnp.uint8)
    with shapes_only():
        exported = jax.export.export(jax.jit(network), platforms=PLATFORMS)(images)
    return bytes(exported.serialize())


def push(workdir: Path, name: str, *, private: bool = False) -> str:
    """Upload the weights of a finished run, with a model card, to the Hugging Face hub.

    Args:
      workdir: a run directory or an exported folder.
      name: `user/name` of the repository, created if missing.
      private: whether a new repository is private.

    Returns:
      The URL of the repository.

    Raises:
      UserError: the run is not finished, or the upload fails.
    """
    if not (workdir / "result.json").is_file():
        raise UserError(f"{workdir} has no result.json, expected a finished run")
    with tempfile.TemporaryDirectory() as folder:
        export(workdir, Path(folder))
        (row,) = results.read([workdir / "result.json"])
        write_whole(Path(folder) / "README.md", model_card(row, name))
        return hub.upload(Path(folder), name, private)


def model_card(row: Row, name: str) -> str:
    """Return the README.md of a repository, from the row of its run."""
    data_license = datasets.DATASETS.get(row["dataset"], Builder).license
    options = json.dumps(row["model_options"])
    facts = {
        "model": f"{row['model']} {options}, {row['parameters']:,} parameters",
        "data": f"{row['dataset']}, {row['resolution'][0]}x{row['resolution'][1]}",
        "license of the data": data_license,
        "scored on": f"{row['num_images']} images of split {row['split']}, void not counted",
        "selected": f"step {row['best_step']} of {row['steps']}, the best on the validation split",
        "batch normalization": row["batch_norm"],
        "config": f"{row['experiment']}, digest {row['config_digest']}, seed {row['seed']}",
        "code": f"segjax {row['versions']['segjax']}, revision {row.get('revision')}",
    }
    scores = {
        "mean IoU": row["mean_iou"],
        "global accuracy": row["global_accuracy"],
        "class accuracy": row["class_accuracy"],
        **dict(zip(row["class_names"], row["per_class_iou"], strict=True)),
    }
    present = dict(zip(row["class_names"], row["present"], strict=True))
    percents = {
        what: f"{100 * value:.1f}" if present.get(what, True) else "absent"
        for what, value in scores.items()
    }
    return _CARD.format(
        title=name.rpartition("/")[2],
        facts="\n".join(f"| {what} | {value} |" for what, value in facts.items()),
        scores="\n".join(f"| {what} | {value} |" for what, value in percents.items()),
        name=name,
        command=row["command"],
    )
