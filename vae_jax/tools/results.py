"""One schema for every published figure, and the tables of README made from it.

A committed command measures, :func:`write` puts its figures into ``results/NAME.json``, and
``python -m vae_jax.tools.results README.md`` puts them between the marks of a Markdown file:

    <!-- results: digits mnist=MNIST | accuracy:.1% elbo_nats="test ELBO" -->
    <!-- /results -->
    The accuracy is <!-- r:digits.accuracy:.1% -->98.1%<!-- /r -->.

Before the bar stand files (NAME), after it figures (KEY or KEY:FORMAT), each with =Label if wanted; a key that holds
an = stands in quotes.
Several files make one row each; one file makes one row per figure. ``--check`` writes nothing and
exits 1 where the Markdown is out of date.
"""

import json
import math
import os
import pathlib
import platform
import re
import subprocess
import sys

from vae_jax.config import UserError

PACKAGES = ("jax", "jaxlib", "flax", "optax", "orbax-checkpoint", "numpy")
TEXT, NUMBER = (str,), (int, float, type(None))
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
    "command_now": TEXT,  # gives the figures again, where the modules of `command` have moved
}
FIGURE = {"value": NUMBER, "unit": TEXT, "sd": NUMBER, "n": (int, type(None))}
BLOCK = re.compile(r"(<!-- results: *([^|>]+?) *\| *([^>]+?) *-->\n).*?(<!-- /results -->)", re.S)
SPAN = re.compile(r"(<!-- r:([\w-]+)\.([^\s:>]+)(?::(\S+))? -->).*?(<!-- /r -->)", re.S)


def _output(*command):
    """What a command prints, or None where it fails or does not exist."""
    try:
        done = subprocess.run(command, capture_output=True, text=True, check=True)
    except (OSError, subprocess.CalledProcessError):
        return None
    return done.stdout.strip()


def commit():
    """The commit of this code, '+changes' where tracked files differ from it; None outside git."""
    git = ("git", "-C", os.path.dirname(__file__))
    head = _output(*git, "rev-parse", "HEAD")
    # What this module itself writes does not count.
    changed = _output(*git, "status", "--porcelain", "-uno", "--", ":/", ":!/results", ":!/README.md")
    return f"{head}+changes" if head and changed else head


def _processor():
    if os.path.exists("/proc/cpuinfo"):
        with open("/proc/cpuinfo") as lines:
            for line in lines:
                if line.startswith("model name"):
                    return line.partition(":")[2].strip()
    return _output("sysctl", "-n", "machdep.cpu.brand_string") or platform.machine()


def device():
    """One line: '2 x cpu' or '8 x NVIDIA H100', then the host's processor and its cores."""
    import jax

    kind = jax.devices()[0].device_kind
    return f"{jax.device_count()} x {kind}; {_processor()}, {os.cpu_count()} cores"


def versions():
    """{package: version} of what the figures depend on."""
    from importlib.metadata import version

    return {"python": platform.python_version(), **{name: version(name) for name in PACKAGES}}


def figure(value, unit, sd=None, n=None):
    """One figure: ``value`` in ``unit`` ('' if none), ``sd`` over ``n`` repeats or examples."""
    value, sd, n = (x.item() if hasattr(x, "item") else x for x in (value, sd, n))
    return {"value": value, "unit": unit, "sd": sd, "n": n}


def _fields(where, given, schema):
    if not isinstance(given, dict) or set(given) != set(schema):
        found = ", ".join(map(str, given)) if isinstance(given, dict) else type(given).__name__
        raise UserError(f"{where}: has {found}; want exactly {', '.join(schema)}")
    for key, value in given.items():
        if not isinstance(value, schema[key]) or isinstance(value, bool):
            kinds = " or ".join("null" if k is type(None) else k.__name__ for k in schema[key])
            raise UserError(f"{where}: {key}={value!r}: want {kinds}")
        if isinstance(value, float) and not math.isfinite(value):
            raise UserError(f"{where}: {key}={value}: want a finite number, or null")


def validate(result, where="result"):
    """Return ``result``; raise a UserError of one line where it breaks the schema."""
    given = isinstance(result, dict) and {k: kinds for k, kinds in OPTIONAL.items() if k in result}
    _fields(where, result, SCHEMA | (given or {}))
    for key, text in result.get("settings", {}).items():
        _fields(where, {f"settings.{key}": text}, {f"settings.{key}": TEXT})
    if not re.fullmatch(r"[\w-]+", result["name"]):
        raise UserError(f"{where}: name={result['name']!r}: want letters, digits, _ and - only")
    if not result["figures"]:
        raise UserError(f"{where}: figures={{}}: want one at least")
    for key, value in result["figures"].items():
        _fields(f"{where}: figures.{key}", value, FIGURE)
    return result


def read(path):
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


def write(path, *, command, config, seed, seconds, figures, settings=None):
    """Write ``results/NAME.json`` whole or not at all; commit, device and versions are found here.

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
        "config": config,
        "seed": seed,
        "commit": commit(),
        "device": device(),
        "versions": versions(),
        "seconds": round(float(seconds), 1),
        **({"settings": settings} if settings else {}),
        "figures": figures,
    }
    write_json(path, validate(result, path))
    return result


def show(one, spec=""):
    """A figure as text: by ``spec``, or to two digits of its sd, or to four digits."""
    value, sd = one["value"], one["sd"]
    if value is None:
        return "–"
    if not spec and sd:
        spec = f".{max(0, 1 - math.floor(math.log10(sd)))}f"
    spec = spec or (",d" if isinstance(value, int) else ".4g")
    return format(value, spec) + (f" ± {format(sd, spec)}" if sd else "")


def _get(result, key):
    if key not in result["figures"]:
        known = ", ".join(result["figures"])
        raise UserError(f"{result['name']}.{key}: no such figure; there are {known}")
    return result["figures"][key]


def _labelled(text):
    """'a b="A label" "c=1.x"="Another"' → [('a', None), ('b', 'A label'), ('c=1.x', 'Another')]."""
    found = []
    for quoted, plain, label, bare in re.findall(r"""(?:"([^"]*)"|([^\s"=]+))(?:=(?:"([^"]*)"|(\S+)))?""", text):
        found.append((quoted or plain, label or bare or None))
    return found


def render(text, folder):
    """``text`` with every marked block and span made anew from the files in ``folder``."""

    def block(match):
        files = [(read(f"{folder}/{name}.json"), label) for name, label in _labelled(match[2])]
        columns = [["", *(label or result["name"] for result, label in files)]]
        for word, label in _labelled(match[3]):
            key, _, spec = word.partition(":")
            cells = [_get(result, key) for result, _ in files]
            units = {one["unit"] for one in cells}
            if len(units) > 1:
                raise UserError(f"{key}: want one unit in {match[2]}, found {', '.join(sorted(units))}")
            head = ", ".join(filter(None, (label or key, *units)))
            columns.append([head, *(show(one, spec) for one in cells)])
        rows = columns if len(files) == 1 else list(zip(*columns, strict=True))
        lines = [f"| {' | '.join(row)} |" for row in rows]
        lines.insert(1, "|" + "---|" * len(rows[0]))
        return match[1] + "\n".join(lines) + "\n" + match[4]

    def span(match):
        one = _get(read(f"{folder}/{match[2]}.json"), match[3])
        return match[1] + show(one, match[4] or "") + match[5]

    return SPAN.sub(span, BLOCK.sub(block, text))


def main(argv):
    """``[--check] README.md``: make its figures anew, or say that they are out of date."""
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
