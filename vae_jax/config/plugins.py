"""Python files of the user: config files, and losses, nets and such as ``file:function``."""

import hashlib
import importlib.util
import os
import sys
import threading
import types
import zlib
from collections.abc import Callable

from vae_jax.config.errors import UserError

_LOCK = threading.RLock()


def module_name(path: str) -> str:
    """The name in ``sys.modules`` of a user's file: that of its folder, a package, and its stem.

    The folder's path is in the name, so that two files with the same name are two modules.
    """
    folder, file = os.path.split(os.path.realpath(path))
    package = f"user_{zlib.crc32(os.fsencode(folder)):08x}"
    return f"{package}.{file.removesuffix('.py').replace('.', '_')}"


def import_file(path: str, field: str, *, again: bool = False) -> types.ModuleType:
    """The module of a user's file. It runs once in a process, or anew with ``again``.

    The file may import others beside it, by ``import helper`` and by ``from . import helper``, from
    any working directory. An exception in it is raised with the user's own traceback.

    Args:
      path: a Python file that exists.
      field: of the config or the command line, for the message.
    Raises:
      UserError: the file is not Python.
    """
    name = module_name(path)
    folder = os.path.dirname(os.path.realpath(path))
    with _LOCK:
        if name in sys.modules and not again:
            return sys.modules[name]
        package = types.ModuleType(name.partition(".")[0])
        package.__path__ = [folder]
        sys.modules.setdefault(package.__name__, package)
        if folder not in sys.path:
            sys.path.append(folder)  # last: a user's file never hides an installed library
        spec = importlib.util.spec_from_file_location(name, os.path.realpath(path))
        module = importlib.util.module_from_spec(spec)
        sys.modules[name] = module  # dataclasses look up their module here while it is imported
        try:
            spec.loader.exec_module(module)
        except SyntaxError as error:
            del sys.modules[name]
            raise UserError(f"{field}={path}: line {error.lineno}: {error.msg}") from None
        except BaseException:
            del sys.modules[name]
            raise
        return module


def file_of(name: str) -> str:
    """The path of the file in ``name``, ``file:function``; a module's dots stand for folders."""
    path = name.rpartition(":")[0]
    if path.endswith(".py"):
        return path
    if os.sep not in path:
        path = path.replace(".", os.sep)
    return f"{path}.py"


def _file(field: str, name: str) -> str:
    path = file_of(name)
    if not os.path.isfile(path):
        raise UserError(f"{field}={name}: no file {path}")
    return path


def source_hash(field: str, name: str) -> str:
    """A hash of the text of ``name``, ``file:function``, as it is on disk now.

    The files beside it that it has imported, or that what they hold is from, count too.
    """
    path = _file(field, name)
    waiting = [import_file(path, field)]
    own_path = os.path.realpath(path)
    folder = os.path.dirname(own_path)
    visited = set()
    files = {own_path}  # also of a function that was handed over in Python, whose file is a stub
    while waiting:
        module = waiting.pop()
        path = getattr(module, "__file__", None)
        path = path and os.path.realpath(path)
        if not path or os.path.dirname(path) != folder or path in visited:
            continue
        visited.add(path)
        files.add(path)
        for value in vars(module).values():
            home = value.__name__ if isinstance(value, types.ModuleType) else None
            home = home or getattr(value, "__module__", None)
            if isinstance(home, str) and home in sys.modules:
                waiting.append(sys.modules[home])
    digest = hashlib.sha256()
    for path in sorted(files):
        with open(path, "rb") as file:
            digest.update(os.path.basename(path).encode() + b"\n" + file.read())
    return digest.hexdigest()[:16]


def own(field: str, name: str) -> Callable[..., object]:
    """The function or class that ``name``, ``file:function``, means; ``field`` set it."""
    path = _file(field, name)
    attribute = name.rpartition(":")[2]
    function = getattr(import_file(path, field), attribute, None)
    if not callable(function):
        raise UserError(f"{field}={name}: {path} has no function {attribute}")
    return function
