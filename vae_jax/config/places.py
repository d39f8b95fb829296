"""Where a user's own files lie: the paths in a config, from the root, and how to move them."""

import os
import re

from ml_collections import ConfigDict

from vae_jax.config.errors import UserError
from vae_jax.config.fields import flatten, set_field
from vae_jax.config.plugins import file_of
from vae_jax.config.sections import CALLS

KINDS = ("folder:", "npz:")
HUB = "hf:"
CODE = tuple(f"{section}.name" for section in CALLS)
NAMES = ("data.name", *CODE)
RUNS = ("objective.features",)  # data.json has the hash of their checkpoints
FOLDERS = ("data.dir", "init_from", *RUNS)


def _split(name: str) -> tuple[str, str, str] | None:
    """(kind, path, the rest) of ``folder:PATH``, ``npz:PATH``, ``hf:FOLDER`` or ``file:function``.

    None of every other name.
    """
    for kind in KINDS:
        if name.startswith(kind):
            return kind, name.removeprefix(kind), ""
    if name.startswith(HUB):
        return _split_hub(name)
    path, _, function = name.rpartition(":")
    if not path or not function.isidentifier():
        return None
    return "", file_of(name), f":{function}"


def _split_hub(name: str) -> tuple[str, str, str] | None:
    """("hf:", path, what follows it) of a folder; None of a name in the library's cache."""
    path = re.split("[:#]", name.removeprefix(HUB))[0]
    if os.path.isabs(path) or os.path.isdir(os.path.expanduser(path)):
        return HUB, path, name.removeprefix(HUB + path)
    return None


def _absolute(path: str) -> str:
    """The path from the root; as it is where it names a store, or a ``~`` that is nobody's."""
    expanded = os.path.expanduser(path)
    if not path or "://" in path or expanded.startswith("~"):
        return path
    return os.path.abspath(expanded)


def absolute_name(name: str) -> str:
    """``folder:PATH``, ``npz:PATH`` or ``file:function`` with its path from the root; others as is.

    NAME:CONFIG of a library has the form of file:function, so that such a file must be there.
    """
    parts = _split(name)
    if parts is None:
        return name
    kind, path, function = parts
    path = _absolute(path)
    if kind or os.path.isfile(path):
        return f"{kind}{path}{function}"
    return name


def absolute(c: ConfigDict) -> ConfigDict:
    """A copy in which no path depends on the working directory."""
    c = c.copy_and_resolve_references()
    flat = flatten(c)
    for field in FOLDERS:
        if isinstance(flat.get(field), str):
            set_field(c, field, _absolute(flat[field]))
    for field in NAMES:
        set_field(c, field, absolute_name(flat[field]))
    return c


def without_places(fields: dict[str, object]) -> dict[str, object]:
    """The flat fields of a config in which own code and other runs have no folder, and own data
    only their kind."""
    fields = dict(fields)
    for field in NAMES:
        parts = _split(str(fields.get(field, "")))
        if parts is None:
            continue
        kind, path, function = parts
        fields[field] = f"{os.path.basename(path)}{function}"
        if field == "data.name":
            fields[field] = kind or "file:function"
    for field in RUNS:
        if isinstance(fields.get(field), str):
            fields[field] = os.path.basename(fields[field])
    return fields


def move(c: ConfigDict, data_path: str = "", code_path: str = "") -> None:
    """Say in ``c``, in place, where own files are now.

    Args:
      data_path: of the images: the folder, .npz file or Python file that ``data.name`` names.
      code_path: the folder of the Python files of own losses and nets.
    Raises:
      UserError: the config has no such files, or they are not there.
    """
    if data_path:
        parts = _split(c.data.name)
        if parts is None:
            has = "no path to images"
            raise UserError(f"data_path={data_path}: data.name={c.data.name} has {has}; want none")
        kind, _, function = parts
        path = _absolute(data_path)
        if not os.path.exists(path):
            raise UserError(f"data_path={data_path}: no such file or folder")
        c.data.name = f"{kind}{path}{function}"
    if code_path:
        _move_code(c, code_path)


def _move_code(c: ConfigDict, folder: str) -> None:
    own = {}
    for field in CODE:
        parts = _split(flatten(c)[field])
        if parts is not None:
            own[field] = parts
    if not own:
        raise UserError(f"code_path={folder}: the run has no loss or net of a file; want none")
    for field, (_, path, function) in own.items():
        file = os.path.join(_absolute(folder), os.path.basename(path))
        if not os.path.isfile(file):
            raise UserError(
                f"code_path={folder}: {field} wants {os.path.basename(path)}, not there"
            )
        set_field(c, field, f"{file}{function}")


def check_places(c: ConfigDict) -> None:
    """Raise :class:`UserError` where a run's own files are not where its config says.

    The line names the flag that says where they are now.
    """
    advice = {"data.name": "--data_path=PATH"} | dict.fromkeys(CODE, "--code_path=FOLDER")
    for field, flag in advice.items():
        name = flatten(c)[field]
        parts = _split(name)
        if parts is None or not os.path.isabs(parts[1]) or os.path.exists(parts[1]):
            continue
        raise UserError(f"{field}={name}: not there; {flag} says where it is now")
