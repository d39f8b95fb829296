"""Replicas: several runs, alike but for a few numbers, that are trained as one program."""

from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import jax
from ml_collections import ConfigDict

from vae_jax.config.errors import UserError
from vae_jax.config.fields import flatten


def replicate(c: ConfigDict, field: str, values: Iterable[object]) -> None:
    """Train one replica for each value of ``field``: ``seed``, ``optim.lr``, an objective's number.

    All replicas are one program: a step for each of them is one step of it. Several fields vary
    together, value by value. On the command line: ``--config.replicas.objective.beta=1,2,4``.
    """
    flat = flatten({k: v for k, v in c.items() if k != "replicas"})
    known = ["seed", "optim.lr"]
    for name, value in flat.items():
        if name.startswith("objective.") and type(value) is float:
            known.append(name)
    if field not in known:
        allowed = ", ".join(known)
        raise UserError(f"replicas.{field}: cannot differ between replicas; want one of {allowed}")
    try:
        numbers = tuple(type(flat[field])(v) for v in values)
    except ValueError:
        words = ",".join(map(str, values))
        raise UserError(f"replicas.{field}={words}: want numbers, such as 0,1,2") from None
    nested = {}
    for name, each in (flatten(c.replicas) | {field: numbers}).items():
        *path, last = name.split(".")
        section = nested
        for key in path:
            section = section.setdefault(key, {})
        section[last] = each
    c.replicas = ConfigDict(nested).lock()


def replica_count(c: ConfigDict) -> int:
    """How many replicas a config trains at once; 0 for a single run."""
    return max(map(len, flatten(c.replicas).values()), default=0)


def replica(c: ConfigDict, r: int) -> ConfigDict:
    """The config of replica r, as of a single run."""
    return override(c, {field: values[r] for field, values in flatten(c.replicas).items()})


def override(c: ConfigDict, values: "Mapping[str, float | jax.Array]") -> ConfigDict:
    """A copy without replicas and with other values of some fields, which may be traced arrays."""
    c = c.copy_and_resolve_references()
    with c.unlocked(), c.ignore_type():
        c.replicas = ConfigDict()
        for field, value in values.items():
            *path, last = field.split(".")
            section = c
            for key in path:
                section = section[key]
            section[last] = value
    return c
