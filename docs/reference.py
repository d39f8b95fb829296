"""The configuration reference and the API page, written when the docs are built."""

import inspect
import pathlib
import re

from ml_collections import ConfigDict

from vae_jax import config
from vae_jax.config import fields, sections

ASSIGNED = re.compile(r"^\s*c\.([\w.]+) = (?:.*?[^#])(?:\s\s# (.*))?$")


def comments() -> dict[str, str]:
    """{field: the comment beside its default} of ``config.default()`` and its data section."""
    words = {}
    for function, prefix in ((fields.default, ""), (fields.data_defaults, "data.")):
        for line in inspect.getsource(function).splitlines():
            match = ASSIGNED.match(line)
            if match and match[2]:
                words[prefix + match[1]] = match[2]
    return words


def row(cells: list[str]) -> str:
    """A line of a Markdown table."""
    escaped = [cell.replace("|", "\\|") for cell in cells]
    return f"| {' | '.join(escaped)} |"


def defaults(c: ConfigDict) -> list[str]:
    """The table of every field."""
    words = comments()
    lines = ["| field | default | meaning |", "|---|---|---|"]
    for field, value in config.flatten(c).items():
        lines.append(row([f"`{field}`", f"`{value!r}`", words.get(field, "")]))
    return lines


def calls(section: str) -> list[str]:
    """The table of a section's names and their fields."""
    module, table = sections.CALLS[section]
    names = getattr(__import__(module, fromlist=[table]), table)
    lines = [f"## {section}.name", "", "| name | fields |", "|---|---|"]
    for name, function in names.items():
        values = config.arguments(function, section)
        texts = [f"`{key}={value!r}`" for key, value in values.items()]
        lines.append(row([f"`{name}`", ", ".join(texts)]))
    return [*lines, ""]


ROOMS = ("objectives", "distributions", "models", "nets", "evaluate")
MODULES = ("vae_jax.train.step", "vae_jax.mesh.rules", "vae_jax.ops", "vae_jax.tools.results")


def modules(root: pathlib.Path) -> list[str]:
    """Dotted names of the modules that the API page documents."""
    names = []
    for room in ROOMS:
        names.append(f"vae_jax.{room}")
        for path in sorted((root / "vae_jax" / room).glob("*.py")):
            if path.stem != "__init__":
                names.append(f"vae_jax.{room}.{path.stem}")
    return [*names, *MODULES]


def api(root: pathlib.Path) -> str:
    """The API page: each module, its docstring and its public functions and classes."""
    lines = []
    for name in modules(root):
        directive = [f".. automodule:: {name}"]
        if name.count(".") > 1:
            directive.append("   :members:")
        lines += [f"## {name}", "", "```{eval-rst}", *directive, "```", ""]
    return "\n".join(lines)


def write(folder: pathlib.Path) -> None:
    """``config.md`` and ``api.md`` into ``folder``."""
    lines = defaults(config.default())
    lines.append("")
    for section in sections.CALLS:
        lines += calls(section)
    folder.mkdir(exist_ok=True)
    (folder / "config.md").write_text("\n".join(lines))
    (folder / "api.md").write_text(api(folder.parents[1]))
