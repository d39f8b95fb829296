"""Configs in files: Python files with ``get_config()``, and the JSON that a run saves."""

import inspect
import json
import os
import traceback
from collections.abc import Mapping

from ml_collections import ConfigDict, config_dict

from vae_jax.config.errors import UserError, nearest
from vae_jax.config.fields import default, flatten, set_field
from vae_jax.config.plugins import import_file
from vae_jax.config.replicas import replicate
from vae_jax.config.sections import CALLS, call, plain


def to_json(c: ConfigDict | dict) -> dict[str, object]:
    """The config as plain JSON (tuples become lists)."""
    if isinstance(c, dict):
        return c
    return json.loads(c.to_json())


def from_json(tree: Mapping[str, object]) -> ConfigDict:
    """A config read back, equal to the one that was saved.

    Fields that are newer than the file keep their defaults. A loss or a net of the user's own is
    not imported.

    Raises:
      UserError: a field is unknown.
    """
    c = default()
    for section in (*CALLS, "optim"):
        fields = tree.get(section)
        if not isinstance(fields, Mapping) or "name" not in fields:
            continue
        if ":" in fields["name"]:
            values = {key: plain(value, f"{section}.{key}") for key, value in fields.items()}
            c[section] = ConfigDict(values).lock()
        else:
            c[section] = call(section, fields["name"])
    for field, values in flatten(tree.get("replicas", {})).items():
        replicate(c, field, values)
    for field, value in flatten({k: v for k, v in tree.items() if k != "replicas"}).items():
        set_field(c, field, value)
    return c


def _missing(path: str) -> UserError:
    folder = os.path.dirname(path) or "configs"
    files = []
    if os.path.isdir(folder):
        files = [name for name in sorted(os.listdir(folder)) if name.endswith(".py")]
    advice = "want configs/NAME.py"
    if files:
        advice = nearest(os.path.basename(path), files)
    return UserError(f"config={path}: no such file; {advice}")


def load(path: str, function: str = "get_config") -> object:
    """``get_config()`` of a config file, or ``get_study()`` of a study's.

    A field that the config does not have, or a value of another type, is one line with the file's
    line. Every other exception is raised with its traceback.
    """
    if not os.path.isfile(path):
        raise _missing(path)
    if not path.endswith(".py"):
        raise UserError(f"config={path}: want a Python file with get_config()")
    module = import_file(path, "config", again=True)
    if not hasattr(module, function):
        raise UserError(f"config={path}: no function {function}() in it")
    try:
        inspect.signature(getattr(module, function)).bind()
    except TypeError as error:
        raise UserError(
            f"config={path}: {function} is called without arguments, but {error}"
        ) from None
    try:
        value = getattr(module, function)()
    except (AttributeError, KeyError, TypeError, ValueError) as error:
        frames = traceback.extract_tb(error.__traceback__)
        if os.path.dirname(frames[-1].filename) != os.path.dirname(config_dict.__file__):
            raise
        real = os.path.realpath(path)
        lines = [f"line {frame.lineno}: " for frame in frames if frame.filename == real]
        line = lines[-1] if lines else ""
        raise UserError(f"config={path}: {line}{str(error).splitlines()[0]}") from None
    if function == "get_config":
        _check_sections(path, value)
    return value


def _check_sections(path: str, c: object) -> None:
    """Raise where a config file gives no config, or one with other fields than :func:`default`."""
    if not isinstance(c, ConfigDict):
        kind = type(c).__name__
        raise UserError(f"config={path}: get_config() gives a {kind}; want a config.default()")
    known = default()
    wrong = sorted(set(known) ^ set(c))
    for section, value in known.items():
        if isinstance(value, ConfigDict) and not isinstance(c.get(section), ConfigDict):
            wrong.append(section)
    if wrong:
        why = "missing, unknown, or no section"
        raise UserError(f"config={path}: {', '.join(wrong)}: {why}; want those of config.default()")


def differences(old: ConfigDict, new: ConfigDict, free: tuple[str, ...] = ()) -> list[str]:
    """['optim.lr: 0.001 -> 0.003', ...] over two configs, without prefixes in ``free``."""
    before = flatten(to_json(old))
    after = flatten(to_json(new))
    lines = []
    for field in sorted(before.keys() | after.keys()):
        if before.get(field) != after.get(field) and not field.startswith(tuple(free)):
            lines.append(f"{field}: {before.get(field)} -> {after.get(field)}")
    return lines
