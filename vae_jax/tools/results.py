"""One schema for every published figure, and the tables of README from it.

A committed command measures, :func:`write` puts its figures into ``results/NAME.json``, and
``python -m vae_jax.tools.results README.md`` puts them between the marks of a Markdown file:

    <!-- results: digits mnist=MNIST | accuracy:.1% elbo_nats="test ELBO" -->
    <!-- /results -->
    The accuracy is <!-- r:digits.accuracy:.1% -->98.1%<!-- /r -->.

Before the bar are files (NAME), after it figures (KEY or KEY:FORMAT), each with =Label if wanted;
a key that holds an = is in quotes. Several files make one row each; one file makes one row per
figure. ``--check`` writes nothing and exits 1 where the Markdown is out of date.
"""

import json
import math
import os
import pathlib
import platform
import re
import subprocess
import sys
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from vae_jax.config import UserError

PACKAGES = ("jax", "jaxlib", "flax", "optax", "orbax-checkpoint", "numpy")
TEXT = (str,)
NUMBER = (int, float, type(None))
Schema = Mapping[str, tuple[type, ...]]
SCHEMA = {
    "name": TEXT,
    "command": TEXT,  # gives the figures again
    "config": (str, dict, type(None)),
    "seed": (int, list, type(None)),  # a list: sd is over these
    "commit": (str, type(None)),  # of the code; +changes where it was not committed as it ran
    "device": TEXT,
    "versions": (dict,),
    "seconds": (int, float),  # of the whole command
    "figures": (dict,),
}
OPTIONAL = {
    "settings": (dict,),  # {name: text} of what else the figures depend on: flags of XLA, load, ...
    "commit_note": TEXT,  # why the commit is not in the history, where it is not
    "command_now": TEXT,  # gives the figures again, where the modules of `command` have moved
}
FIGURE = {"value": NUMBER, "unit": TEXT, "sd": NUMBER, "n": (int, type(None))}
BLOCK = re.compile(r"(<!-- results: *([^|>]+?) *\| *([^>]+?) *-->\n).*?(<!-- /results -->)", re.S)
SPAN = re.compile(r"(<!-- r:([\w-]+)\.([^\s:>]+)(?::(\S+))? -->).*?(<!-- /r -->)", re.S)


def _output(*command: str) -> str | None:
    """What a command prints, or None where it fails or does not exist."""
    try:
        done = subprocess.run(command, capture_output=True, text=True, check=True)
    except (OSError, subprocess.CalledProcessError):
        return None
    return done.stdout.strip()


def commit() -> str | None:
    """The commit of this code, '+changes' where tracked files differ from it; None outside git."""
    git = ("git", "-C", os.path.dirname(__file__))
    head = _output(*git, "rev-parse", "HEAD")
    # What this module itself writes does not count.
    paths = (":/", ":!/results", ":!/README.md", ":!/docs")
    changed = _output(*git, "status", "--porcelain", "-uno", "--", *paths)
    return f"{head}+changes" if head and changed else head


def _processor() -> str:
    if os.path.exists("/proc/cpuinfo"):
        with open("/proc/cpuinfo") as lines:
            for line in lines:
                if line.startswith("model name"):
                    return line.partition(":")[2].strip()
    return _output("sysctl", "-n", "machdep.cpu.brand_string") or platform.machine()


def device() -> str:
    """One line: '2 x cpu' or '8 x NVIDIA H100', then the host's processor and its cores."""
    import jax

    kind = jax.devices()[0].device_kind
    return f"{jax.device_count()} x {kind}; {_processor()}, {os.cpu_count()} cores"


def versions() -> dict[str, str]:
    """{package: version} of what the figures depend on."""
    from importlib.metadata import version

    return {"python": platform.python_version(), **{name: version(name) for name in PACKAGES}}


Number = int | float | np.generic | None


def _python(number: Number) -> int | float | None:
    return number.item() if hasattr(number, "item") else number


def figure(value: Number, unit: str, sd: Number = None, n: Number = None) -> dict[str, object]:
    """One figure: ``value`` in ``unit`` ('' if none), ``sd`` over ``n`` repeats or examples."""
    return {"value": _python(value), "unit": unit, "sd": _python(sd), "n": _python(n)}


def _kind(kind: type) -> str:
    if kind is type(None):
        return "null"
    return kind.__name__


def _fields(where: object, fields: object, schema: Schema) -> None:
    if not isinstance(fields, dict):
        raise UserError(f"{where}: has {type(fields).__name__}; want exactly {', '.join(schema)}")
    if set(fields) != set(schema):
        names = ", ".join(map(str, fields))
        raise UserError(f"{where}: has {names}; want exactly {', '.join(schema)}")
    for key, value in fields.items():
        if not isinstance(value, schema[key]) or isinstance(value, bool):
            kinds = " or ".join(map(_kind, schema[key]))
            raise UserError(f"{where}: {key}={value!r}: want {kinds}")
        if isinstance(value, float) and not math.isfinite(value):
            raise UserError(f"{where}: {key}={value}: want a finite number, or null")


def validate(result: object, where: object = "result") -> dict[str, object]:
    """Return ``result``; raise a UserError of one line where it breaks the schema."""
    schema = dict(SCHEMA)
    if isinstance(result, dict):
        schema |= {key: kinds for key, kinds in OPTIONAL.items() if key in result}
    _fields(where, result, schema)
    for key, text in result.get("settings", {}).items():
        _fields(where, {f"settings.{key}": text}, {f"settings.{key}": TEXT})
    if not re.fullmatch(r"[\w-]+", result["name"]):
        raise UserError(f"{where}: name={result['name']!r}: want letters, digits, _ and - only")
    if not result["figures"]:
        raise UserError(f"{where}: figures={{}}: want one at least")
    for key, value in result["figures"].items():
        _fields(f"{where}: figures.{key}", value, FIGURE)
    return result


def read(path: str | os.PathLike) -> dict[str, object]:
    """The valid result in ``path``, whose name is its file's."""
    path = pathlib.Path(path)
    try:
        result = json.loads(path.read_text())
    except OSError as error:
        raise UserError(f"{path}: {error.strerror}") from None
    except ValueError as error:
        raise UserError(f"{path}: no JSON: {error}") from None
    validate(result, path)
    if result["name"] != path.stem:
        raise UserError(f"{path}: name={result['name']}: want {path.stem}, the file's name")
    return result


def check(path: str | os.PathLike) -> None:
    """Raise where :func:`write` could not write this file: asked before the work."""
    from vae_jax.train import log  # here: the tables of README need no more than JSON

    path = pathlib.Path(path)
    if path.suffix != ".json" or not re.fullmatch(r"[\w-]+", path.stem):
        right = "a file NAME.json, with letters, digits, _ and - in NAME"
        raise UserError(f"results={path}: want {right}")
    if not path.parent.is_dir():
        raise UserError(f"results={path}: no folder {path.parent}")
    log.check_writable(path)


def write(
    path: str | os.PathLike,
    *,
    command: str,
    config: str | dict | None,
    seed: int | Sequence[int] | None,
    seconds: float,
    figures: dict[str, dict],
    settings: dict[str, str] | None = None,
) -> dict[str, object]:
    """Write ``results/NAME.json`` whole or not at all, with this commit, device and versions.

    Args:
      figures: {key: :func:`figure`}.
      settings: {name: text}, where they depend on more than code, device and versions.
    Raises:
      UserError: the schema is broken, or the file cannot be written; the old file stays.
    """
    from vae_jax.train.checkpoint import write_json  # here: only who writes waits for Orbax

    path = pathlib.Path(path)
    result = {
        "name": path.stem,
        "command": command,
        "config": from_home(config),
        "seed": seed,
        "commit": commit(),
        "device": device(),
        "versions": versions(),
        "seconds": round(float(seconds), 1),
    }
    if settings:
        result["settings"] = settings
    result["figures"] = figures
    write_json(path, validate(result, path))
    return result


def from_home(value: Any) -> Any:
    """The value with ``~`` in the place of this user's home, wherever a text begins with it."""
    if isinstance(value, dict):
        return {key: from_home(inner) for key, inner in value.items()}
    if isinstance(value, list | tuple):
        return [from_home(inner) for inner in value]
    home = os.path.expanduser("~") + os.sep
    if isinstance(value, str) and value.startswith(home):
        return "~" + os.sep + value.removeprefix(home)
    return value


def show(one: Mapping[str, object], spec: str = "") -> str:
    """A figure as text: by ``spec``, or to two digits of its sd, or to four digits."""
    value = one["value"]
    sd = one["sd"]
    if value is None:
        return "–"
    if not spec and sd:
        spec = f".{max(0, 1 - math.floor(math.log10(sd)))}f"
    if not spec:
        spec = ",d" if isinstance(value, int) else ".4g"
    text = format(value, spec)
    if sd:
        text += f" ± {format(sd, spec)}"
    return text


def _get(result: Mapping[str, dict], key: str) -> dict[str, object]:
    if key not in result["figures"]:
        known = ", ".join(result["figures"])
        raise UserError(f"{result['name']}.{key}: no such figure; there are {known}")
    return result["figures"][key]


WORD = re.compile(r"""(?:"([^"]*)"|([^\s"=]+))(?:=(?:"([^"]*)"|(\S+)))?""")


def _labelled(text: str) -> list[tuple[str, str | None]]:
    """'a b="A label" "c=1.x"="Another"' → [('a', None), ('b', 'A label'), ('c=1.x', 'Another')]."""
    words = WORD.findall(text)
    return [(quoted or plain, label or bare or None) for quoted, plain, label, bare in words]


def _table(columns: list[list[str]], transposed: bool) -> str:
    rows = columns
    if transposed:
        rows = list(zip(*columns, strict=True))
    lines = [f"| {' | '.join(row)} |" for row in rows]
    lines.insert(1, "|" + "---|" * len(rows[0]))
    return "\n".join(lines)


def render(text: str, folder: str | os.PathLike) -> str:
    """``text`` with the content of every marked block and span from the files in ``folder``."""

    def block(match: re.Match) -> str:
        files = []
        names = [""]
        for name, label in _labelled(match[2]):
            files.append(read(f"{folder}/{name}.json"))
            names.append(label or name)
        columns = [names]
        for word, label in _labelled(match[3]):
            key, _, spec = word.partition(":")
            cells = [_get(result, key) for result in files]
            units = {one["unit"] for one in cells}
            if len(units) > 1:
                different = ", ".join(sorted(units))
                raise UserError(f"{key}: want one unit in {match[2]}, found {different}")
            head = ", ".join(filter(None, (label or key, *units)))
            columns.append([head, *(show(one, spec) for one in cells)])
        return match[1] + _table(columns, len(files) > 1) + "\n" + match[4]

    def span(match: re.Match) -> str:
        one = _get(read(f"{folder}/{match[2]}.json"), match[3])
        return match[1] + show(one, match[4] or "") + match[5]

    return SPAN.sub(span, BLOCK.sub(block, text))


def main(argv: list[str]) -> None:
    """``[--check] README.md``: write its figures again, or raise where they are out of date."""
    paths = [pathlib.Path(a) for a in argv if a != "--check"]
    if len(paths) != 1 or not paths[0].is_file():
        raise UserError("usage: python -m vae_jax.tools.results [--check] README.md")
    old = paths[0].read_text()
    new = render(old, paths[0].parent / "results")
    if "--check" in argv and new != old:
        raise UserError(f"{paths[0]}: out of date; run python -m vae_jax.tools.results {paths[0]}")
    if new != old:
        paths[0].write_text(new)


if __name__ == "__main__":
    try:
        main(sys.argv[1:])
    except UserError as error:
        sys.exit(f"error: {error}")
