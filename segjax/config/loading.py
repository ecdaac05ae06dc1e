"""Load the config of a file, apply overrides to it, and restore it from its fields."""

import ast
import contextlib
import difflib
import importlib.util
import math
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
from ml_collections import ConfigDict, FrozenConfigDict
from ml_collections.config_dict import RequiredValueError

from segjax.config.fields import (
    CONDITIONS,
    GROUPS,
    OPEN,
    check,
    default,
    flat,
    flat_default,
    incidental,
    require,
)
from segjax.errors import UserError, one_line
from segjax.system import stored
from segjax.system.files import local_path

# What users of other software call our fields, which spelling alone would not find.
ABBREVIATIONS = {
    "lr": "optimizer.learning_rate",
    "wd": "optimizer.weight_decay",
    "epochs": "steps",
}


def load_module(spec: str) -> tuple[ModuleType, str | None]:
    """Import the config file of `FILE` or `FILE:ARG`; return its module and ARG or None."""
    name, argument = _split(spec)
    path = local_path(name)
    if not path.is_file():
        raise UserError(f"config file {name} does not exist")
    module_spec = importlib.util.spec_from_file_location(path.stem, path)
    if module_spec is None or module_spec.loader is None:
        raise UserError(f"config file {name} is not a Python file")
    module = importlib.util.module_from_spec(module_spec)
    try:
        module_spec.loader.exec_module(module)
    except Exception as error:
        message = one_line(error)
        raise UserError(f"config file {name} fails: {type(error).__name__}: {message}") from error
    if not hasattr(module, "get_config"):
        raise UserError(f"config file {name} has no get_config()")
    return module, argument


def _split(spec: str) -> tuple[str, str | None]:
    """Return FILE and ARG of `FILE[:ARG]`; of several colons, the longest FILE that exists."""
    try:
        local_path(spec)
    except UserError as error:
        raise UserError(f"config file: {error}") from error
    parts = spec.split(":")
    names = (":".join(parts[:end]) for end in range(len(parts), 0, -1))
    name = next((name for name in names if name and local_path(name).is_file()), parts[0])
    return name, spec[len(name) + 1 :] or None


def experiment_name(spec: str) -> str:
    """Return the name of an experiment: the stem of its config file, or what config.json says."""
    return str(_of_run(spec)["experiment"]) if is_of_run(spec) else Path(_split(spec)[0]).stem


def recorded(
    spec: str | ConfigDict, overrides: Mapping[str, Any], config: ConfigDict
) -> dict[str, Any]:
    """Return the fields of a loaded config that a row names as overrides, with their values.

    They are those given and, of the config.json of a run, those of that run, so that its seeds stay
    together in tables.
    """
    names = list(overrides)
    if not isinstance(spec, ConfigDict) and is_of_run(spec):
        names += _of_run(spec)["overrides"]
    fields = flat(config)
    return {name: fields[name] for name in names if name in fields and not incidental(name)}


def is_of_run(spec: str) -> bool:
    """Return whether a config is given as the config.json of a run."""
    return Path(_split(spec)[0]).suffix == ".json"


def load(spec: str | ConfigDict, overrides: Mapping[str, Any]) -> ConfigDict:
    """Load the config of `FILE[:ARG]`, apply the overrides and check it; return it locked.

    Args:
      spec: a Python file, whose `get_config` is called with ARG, the config.json of a run, or a
        config made in Python from `default()`, which is not changed.
      overrides: {"a.b": value}.

    Raises:
      UserError: the file is missing or broken, a field is unknown or invalid, or an override has no
        effect given the other fields.
    """
    if isinstance(spec, ConfigDict):
        config = ConfigDict(spec)
    elif is_of_run(spec):
        config = restore(_of_run(spec)["config"])
    else:
        config = _from_python(spec)
    override(config, overrides)
    fields = dict(_leaves(config))
    source = "" if isinstance(spec, ConfigDict) else f" file {spec}"
    if missing := [name for name in flat_default() if name not in fields]:
        raise UserError(f"config{source} lacks field {missing[0]!r} of segjax.config.default()")
    derived = fields["model.pretrained"] and "data.normalization" not in overrides
    if derived and fields["data.normalization"] == "mean_std":
        fields["data.normalization"] = "imagenet"  # the input that the weights were trained on
    for name in ("data.data_dir", "data.folder"):
        # Absolute, for starts from another current directory.
        if fields[name] and isinstance(fields[name], str):
            try:
                fields[name] = str(local_path(str(local_path(fields[name]).absolute())))
            except UserError as error:
                raise UserError(f"config field {name!r}: {error}") from error
    config = restore(fields)

    warmup = config.optimizer.warmup_steps  # not in `check`: older runs must stay readable
    known = f"below steps ({config.steps})"
    require(config, "optimizer.warmup_steps", warmup < config.steps, known)
    crop, largest = config.augment.crop, max(1.0, config.augment.scale[1])
    sides = zip(crop, config.data.resolution, strict=False)
    known = f"at most data.resolution, {config.data.resolution}, times the largest augment.scale"
    require(config, "augment.crop", all(x <= largest * side for x, side in sides), known)
    for name, (condition, holds) in CONDITIONS.items():
        if name in overrides and not holds(config):
            value = flat(config)[name]
            raise UserError(f"config field {name!r} is set to {value!r}, but only used {condition}")
    return config


def _of_run(spec: str) -> dict[str, Any]:
    """Read a config.json, as `segjax.runs.experiment.write_description` writes it."""
    path = local_path(_split(spec)[0])
    try:
        content = stored.unseal(stored.parse(path.read_bytes()))
        return {
            "experiment": content["experiment"],
            "overrides": dict(content.get("overrides", {})),
            "config": dict(content["config"]),
        }
    except FileNotFoundError:
        raise UserError(f"config file {path} does not exist") from None
    except (ValueError, LookupError, TypeError, OSError) as error:
        raise UserError(f"config file {path} is not the config.json of a run: {error}") from error


def _from_python(spec: str) -> ConfigDict:
    module, argument = load_module(spec)
    try:
        config = module.get_config(argument) if argument else module.get_config()
    except Exception as error:
        message = one_line(error)
        raise UserError(f"config file {spec}: {type(error).__name__}: {message}") from error
    if not isinstance(config, ConfigDict):
        raise UserError(
            f"config file {spec}: get_config returns a {type(config).__name__}, not a ConfigDict"
        )
    return ConfigDict(config) if isinstance(config, FrozenConfigDict) else config


def restore(fields: Mapping[str, Any]) -> ConfigDict:
    """Return the config of the fields {"a.b": value} of a config file or a `config.json`, locked.

    Whatever it accepts, it accepts again with the same digest after a round trip through JSON.
    A field that is missing has its default value.

    Raises:
      UserError: an unknown name, a wrong type or an invalid value.
    """
    config = default()
    for name, value in fields.items():
        _assign(config, name, value)
    check(config)
    return config


def _leaves(config: ConfigDict, group: str = "") -> Iterator[tuple[str, Any]]:
    """Yield the dotted name and the value of whatever a config file has put into a config."""
    for key in config:
        name, value = f"{group}{key}", _get(config, key)
        if isinstance(value, ConfigDict) and name in GROUPS:
            yield from _leaves(value, f"{name}.")
        else:
            yield name, value


def _get(config, field):
    """Return the value of a field, None if there is none or it is a placeholder."""
    try:
        return config.get(field)
    except RequiredValueError:
        return None


def override(config: ConfigDict, overrides: Mapping[str, Any]) -> None:
    """Set fields by their dotted names.

    Text, as from the command line, is parsed to the type of the field. `model.options` and
    `optimizer.rates` accept any name here: later the model refuses options that it does not have,
    and the optimizer refuses patterns that match no parameter.

    Raises:
      UserError: an unknown name or a wrong type.
    """
    for name, value in overrides.items():
        _assign(config, name, value, parse=isinstance(value, str))


def closest(name: str) -> str | None:
    """Return the field that an unknown name probably means; None if no field is like it."""
    *_, word = name.split(".")
    fields = flat(default())
    close = difflib.get_close_matches(name, fields, n=1, cutoff=0.5)
    return ABBREVIATIONS.get(word) or (close[0] if close else None)


def _assign(config: ConfigDict, name: str, value: Any, parse: bool = False) -> None:
    *parents, field = name.split(".")
    owner: Any = config
    for parent in parents:
        owner = _get(owner, parent) if isinstance(owner, ConfigDict) else None
    group = ".".join(parents)
    open_ended, is_factor = group in OPEN, group == "optimizer.rates"
    if not isinstance(owner, ConfigDict) or not (field in owner or open_ended):
        close = closest(name)
        hint = f"; did you mean {close!r}?" if close else ""
        raise UserError(f"config has no field {name!r}{hint}")
    if name in GROUPS:
        raise UserError(f"config field {name!r} is a group of fields, not one")

    # The default tells the type even where a config file has left a placeholder.
    example = flat_default().get(name, 1.0 if is_factor else _get(owner, field))
    if parse:
        value = _parse(name, value, example)
    value = plain(name, value, example)
    if isinstance(example, tuple) and not isinstance(value, tuple):
        value = (value,)
    if isinstance(example, bool) != isinstance(value, bool) and example is not None:
        raise _wrong_type(name, value, example)
    if is_factor:  # a new field has no type that ConfigDict could check
        if not isinstance(value, int | float):
            raise _wrong_type(name, value, example)
        value = float(value)
    try:
        with contextlib.nullcontext() if field in owner else owner.unlocked():
            owner[field] = value
    except (TypeError, OverflowError) as error:
        raise _wrong_type(name, value, example) from error


def _parse(name, text, example):
    if isinstance(example, str):
        return None if text == "None" else text
    try:
        return ast.literal_eval(text)
    except (ValueError, SyntaxError) as error:
        if text.lower() in ("true", "false"):
            return text.lower() == "true"
        if example is None:  # a new model option may be a word
            return text
        raise _wrong_type(name, text, example) from error


def plain(name: str, value: Any, example: Any = None) -> Any:
    """Return a value as JSON keeps it: bool, int, float, str, or a tuple of those (JSON's list)."""
    if isinstance(value, np.generic):
        value = value.item()
    if isinstance(value, list | tuple):
        return tuple(plain(name, item, None) for item in value)
    if type(value) not in (bool, int, float, str):
        raise _wrong_type(name, value, example)
    if isinstance(value, float) and not math.isfinite(value):
        raise UserError(f"config field {name!r} must be finite, found {value!r}")
    if isinstance(value, int) and not abs(value) < 2**63:  # its text may be too long to show
        raise UserError(f"config field {name!r} must be below 2^63")
    return value


def _wrong_type(name, value, example):
    expected = f"of type {type(example).__name__}, such as {example!r}"
    if isinstance(example, tuple) and example:
        expected += f", given as {','.join(map(str, example))}"
    if example is None:
        expected = "a number, a truth value, text, or a tuple of those"
    found = " ".join(repr(value).split())
    found = found if len(found) <= 100 else found[:97] + "..."
    return UserError(f"config field {name!r} is {expected}, found {found}")


def parse_overrides(arguments: Sequence[str]) -> dict[str, str]:
    """Parse `--config.a.b=value` arguments into {"a.b": "value"}.

    Raises:
      UserError: an argument has no value, or two arguments give a field different ones.
    """
    overrides: dict[str, str] = {}
    for argument in arguments:
        name, equals, value = argument.partition("=")
        if not equals:
            raise UserError(f"argument {argument!r} needs a value: {name}=VALUE")
        field = name.removeprefix("--config.")
        if overrides.setdefault(field, value) != value:
            raise UserError(f"{name} is given twice, as {overrides[field]!r} and as {value!r}")
    return overrides
