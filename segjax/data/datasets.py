"""The datasets, built once by TFDS as array_record files and then read by index.

Images are uint8 (H, W, C), RGB, gray or of N channels; labels are uint8 (H, W) in [0, K) with
`VOID` = 255 for "ignore".
"""

import contextlib
import functools
import io
import os
import shlex
import shutil
import tempfile
from pathlib import Path
from typing import Any

import tensorflow_datasets as tfds

from segjax.data import camvid, catalog, isbi2012, modules, streetscenes
from segjax.data.builders import Builder
from segjax.data.folder import Folder
from segjax.data.source import Source, check_shard
from segjax.data.statistics import VOID, DatasetInfo, SplitInfo, split_info
from segjax.errors import UserError
from segjax.system import locks, stored
from segjax.system.files import take_folders_literally

__all__ = [
    "DATASETS",
    "VOID",
    "DatasetInfo",
    "Source",
    "SplitInfo",
    "info",
    "open_split",
    "prepare",
]

take_folders_literally()

DATASETS: dict[str, type[Builder]] = {
    "camvid": camvid.CamVid,
    "folder": Folder,
    "isbi2012": isbi2012.Isbi2012,
    "streetscenes": streetscenes.StreetScenes,
}

PREFIXES = {"tfds": catalog, "module": modules}
"""Prefix of a name such as `tfds:NAME` -> module with `check_name`."""

PathLike = str | os.PathLike[str]


def check_name(name: str, what: str = "dataset") -> None:
    """Check that a dataset of this name may exist, without looking at any file.

    Raises:
        UserError: it cannot; `what` is its name in the message.
    """
    prefix, colon, rest = name.partition(":")
    if colon and prefix in PREFIXES:
        PREFIXES[prefix].check_name(rest)
    elif name not in DATASETS:
        known = ", ".join((*DATASETS, *(f"{prefix}:NAME" for prefix in PREFIXES)))
        raise UserError(f"unknown {what} {name!r}, expected one of {known}")


def prepare(
    name: str,
    *,
    data_dir: PathLike | None = None,
    source: PathLike | None = None,
    resolution: tuple[int, int] | None = None,
) -> DatasetInfo:
    """Build a dataset unless it exists, and delete what killed builds of it left behind.

    Args:
        name: a key of `DATASETS`, tfds:NAME with a preset, or module:NAME.
        data_dir: folder of prepared datasets; None is $TFDS_DATA_DIR or ~/tensorflow_datasets.
        source: the published folder of camvid or isbi2012 (None downloads camvid), or the images
            and masks of folder.
        resolution: (height, width) at which streetscenes are drawn, 96x128 by default; the others
            are stored at their own size and ignore it.

    Raises:
        UserError: the name is unknown, the source is not as published, the directory cannot be
            written, or the dataset exists but is damaged.
    """
    builder = _builder(name, data_dir, source, None, resolution)
    _size(name, builder, resolution)  # raises before the work, not after it
    _build(builder)
    return _info(name, builder, resolution)


def info(
    name: str,
    *,
    data_dir: PathLike | None = None,
    folder: PathLike | None = None,
    options: catalog.Options | None = None,
    resolution: tuple[int, int] | None = None,
) -> DatasetInfo:
    """Describe a prepared dataset; arguments and errors are those of `open_split`."""
    return _info(name, _prepared(name, data_dir, folder, options, resolution), resolution)


def shape(
    name: str,
    folder: PathLike | None = None,
    options: catalog.Options | None = None,
    data_dir: PathLike | None = None,
) -> tuple[int, int]:
    """Return the numbers of channels and classes of a dataset.

    It need not be prepared; one of TFDS must be built, in `data_dir`.
    """
    builder = _builder(name, data_dir, folder, options, None)
    return builder.channels, len(builder.class_names)


def open_split(
    name: str,
    split: str,
    *,
    data_dir: PathLike | None = None,
    folder: PathLike | None = None,
    options: catalog.Options | None = None,
    resolution: tuple[int, int] | None = None,
    native: bool = False,
    fit: str = "resize",
) -> Source:
    """Open one split of a prepared dataset; all but camvid and isbi2012 are prepared on first use.

    Args:
        name: a key of `DATASETS`, tfds:NAME or module:NAME.
        split: "train", "val" or "test".
        data_dir: folder of prepared datasets; None is $TFDS_DATA_DIR or ~/tensorflow_datasets.
        folder: the images and masks of dataset `folder`.
        options: features, classes and splits of tfds:NAME; None: its preset's.
        resolution: (height, width) of the examples. streetscenes are drawn at this size (None:
            96x128), the others are fitted to it when they are read (None: their own size).
        fit: how, if their aspect is another: resize, letterbox or crop (`segjax.data.fitting`).
        native: read the examples at their own sizes all the same.

    Raises:
        UserError: the name or split is unknown, or the dataset has not been prepared or is damaged.
    """
    builder = _prepared(name, data_dir, folder, options, resolution)
    if split not in builder.info.splits:
        raise UserError(f"{name} has no split {split!r}, only {', '.join(builder.info.splits)}")
    return Source(builder, split, None if native else resolution, fit, _remedy(builder))


def _builder(
    name: str,
    data_dir: PathLike | None,
    source: PathLike | None,
    options: catalog.Options | None,
    resolution: tuple[int, int] | None,
) -> Builder:
    check_name(name)
    if resolution is not None and (
        len(resolution) != 2 or any(type(side) is not int or side < 1 for side in resolution)
    ):
        raise UserError(f"resolution {resolution!r}, expected (height, width) in whole pixels")
    # TFDS reads the variable only when it is imported.
    default = os.environ.get("TFDS_DATA_DIR", "~/tensorflow_datasets")
    directory = Path(default if data_dir is None else data_dir).expanduser()
    folder = None if source is None else Path(source).expanduser()
    prefix, _, rest = name.partition(":")
    kinds: dict[str, Any] = {"tfds": catalog.Tfds, "module": modules.Module, **DATASETS}
    kind = kinds[prefix]
    if folder is not None and not kind.takes_source:
        raise UserError(f"dataset {name} takes no source or folder, found {folder}")
    create = functools.partial(kind, source=folder, resolution=resolution)
    if prefix == "tfds":
        create = functools.partial(
            create, dataset=rest, options=options or catalog.Options(), stored_in=directory
        )
    elif prefix == "module":
        create = functools.partial(create, module=rest)
    try:
        return create(data_dir=directory)
    except UserError:
        raise
    except Exception as error:  # of TFDS or protobuf: it reads the file of a prepared dataset
        if isinstance(error, OSError) and error.filename:
            raise
        with tempfile.TemporaryDirectory() as empty:
            builder = create(data_dir=Path(empty))
        path = directory / builder.data_path.relative_to(empty)
        raise UserError(
            f"{path / 'dataset_info.json'} is damaged: {_remedy(builder, directory)}"
        ) from error


def _remedy(builder: Builder, directory: Path | None = None) -> str:
    """Return what to do about a damaged dataset, in `directory` if not in that of the builder."""
    root = directory or builder.data_dir_root
    path = root / builder.data_path.relative_to(builder.data_dir_root)
    if builder.made_on_first_use:
        return f"delete {path}, and the next run prepares it again"
    return (
        f"delete {path} and prepare it again with segjax data {builder.name} --source DIR "
        f"--data-dir {shlex.quote(str(root))}"
    )


def _prepared(
    name: str,
    data_dir: PathLike | None,
    folder: PathLike | None,
    options: catalog.Options | None,
    resolution: tuple[int, int] | None,
) -> Builder:
    builder = _builder(name, data_dir, folder, options, resolution)
    if builder.made_on_first_use:
        _build(builder)
    elif not _is_built(builder):
        option = "" if data_dir is None else f" --data-dir {os.fspath(data_dir)}"
        raise UserError(
            f"{builder.data_path} not found: prepare {name} once with "
            f"segjax data {name} --source DIR{option}"
        )
    return builder


def _is_built(builder: Builder) -> bool:
    """Return whether a dataset exists.

    Raises:
        UserError: one of its files is missing or cut.
    """
    folder = Path(builder.data_path)
    # TFDS renames a finished folder into place, so an existing one was complete.
    if not folder.exists():
        return False
    file = folder
    try:
        for file in (folder / f"{name}.json" for name in ("dataset_info", "features", "metadata")):
            stored.parse(file.read_bytes())
        splits = ("train", *builder.info.splits)
        infos = {split: split_info(builder.info.metadata[split]) for split in splits}
        for split in splits:
            file = folder / "dataset_info.json"
            shards = builder.info.splits[split]
            if shards.num_examples != infos[split].num_images:
                raise ValueError(f"{shards.num_examples} examples in {split}")
            for file, count in zip(shards.filepaths, shards.shard_lengths, strict=True):
                check_shard(file, count)
    except (OSError, LookupError, TypeError, ValueError, RuntimeError) as error:
        fault = "missing" if isinstance(error, FileNotFoundError) else "damaged"
        raise UserError(f"{file} is {fault}: {_remedy(builder)}") from error
    return True


def _build(builder: Builder) -> None:
    if _is_built(builder):
        return
    tfds.disable_progress_bar()  # the builders show one of their own
    parent = Path(builder.data_path).parent
    try:
        parent.mkdir(parents=True, exist_ok=True)
        with contextlib.ExitStack() as stack:
            lock = locks.acquire(parent / ".lock", wait=None)
            stack.enter_context(lock)  # type: ignore[arg-type]  # it waits for the lock
            if _is_built(builder):  # by another process in the meantime
                return
            for left in parent.glob("incomplete.*"):  # by a killed one: it had the lock
                shutil.rmtree(left)
            # Standard output belongs to the results of the command, not to the messages of TFDS.
            stack.enter_context(contextlib.redirect_stdout(io.StringIO()))
            builder.download_and_prepare()
    except OSError as error:
        raise UserError(f"cannot write {builder.data_path}: {error.strerror or error}") from error


def _info(name: str, builder: Builder, resolution: tuple[int, int] | None) -> DatasetInfo:
    splits = {split: split_info(builder.info.metadata[split]) for split in builder.info.splits}
    return DatasetInfo(
        name=name,
        class_names=builder.class_names,
        palette=builder.palette,
        mean=splits["train"].mean,
        std=splits["train"].std,
        splits=splits,
        resolution=_size(name, builder, resolution),
        origin=builder.origin if isinstance(builder, modules.Module) else "",
    )


def _size(name: str, builder: Builder, resolution: tuple[int, int] | None) -> tuple[int, int]:
    """Return the size of the examples: the resolution, or that of the stored images."""
    height, width = resolution or builder.info.features["image"].shape[:2]
    if height is None:
        raise UserError(f"images of {name} have their own sizes, expected a resolution")
    return height, width
