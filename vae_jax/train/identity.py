"""What a run was trained on, so that it is found again: data.json in the run's folder."""

import json
import os
from collections.abc import Callable
from typing import Any

from etils import epath
from ml_collections import ConfigDict

from vae_jax import config as config_lib
from vae_jax import data
from vae_jax.config import UserError
from vae_jax.train import checkpoint, features


def keep(
    workdir: str,
    c: ConfigDict,
    dataset: data.Dataset,
    *,
    accept_changed: bool = False,
    say: Callable[[str], Any] = print,
) -> None:
    """Write data.json: what a run must find again to go on with the same images and functions.

    Raises:
      UserError: the run in the workdir has checkpoints and was trained on other images, or with
        another text of an own loss or net, and ``accept_changed`` is not set.
    """
    if checkpoint.has_saved(workdir):
        check(workdir, c, dataset, accept_changed=accept_changed, say=say)
    facts = data.identity(dataset) | {"sources": config_lib.sources(c) | features.hashes(c)}
    checkpoint.write_json(os.path.join(workdir, "data.json"), facts)


def read(workdir: str) -> dict[str, Any] | None:
    """What data.json holds; None where there is none.

    Raises:
      UserError: it is damaged.
    """
    path = epath.Path(workdir, "data.json")
    if not path.exists():
        return None
    try:
        identity = json.loads(path.read_bytes())
        dict(identity["splits"])
        known = {"name": str(identity["name"]), "sources": dict(identity.get("sources", {}))}
        return identity | known
    except (OSError, ValueError, KeyError, AttributeError, TypeError, RecursionError):
        raise UserError(f"{path}: not the description of a run's data") from None


def check(
    workdir: str,
    c: ConfigDict,
    dataset: data.Dataset,
    *,
    accept_changed: bool = False,
    say: Callable[[str], Any] = print,
) -> None:
    """Raise where a run's images, classes, splits or own functions changed since it was trained.

    ``accept_changed``: say so in one line in the place of raising. Where the files lie does not
    count.
    """
    try:
        identity = read(workdir)
    except UserError as error:
        why = f"{error}; --accept_changed_data goes on without it"
        if not accept_changed:
            raise UserError(why) from None
        say(f"{why}; accepted")
        return
    if identity is None:
        return
    kinds = {
        "its data": _data_changes(identity, dataset),
        "its own functions": _source_changes(identity, c),
    }
    reasons = []
    for what, changed in kinds.items():
        if changed:
            reasons.append(f"{what} changed since it was trained ({'; '.join(changed)})")
    if not reasons:
        return
    why = "; ".join(reasons)
    if accept_changed:
        say(f"workdir={workdir}: {why}; accepted")
        return
    raise UserError(
        f"workdir={workdir}: {why}; want it as it was, or --accept_changed_data if you mean it"
    )


def _data_changes(identity: dict[str, Any], dataset: data.Dataset) -> list[str]:
    """How the images, classes and splits differ from those in data.json."""
    now = data.identity(dataset)
    before = {"objects": now["objects"]} | identity  # runs of older versions have no objects
    trees = []
    for tree in (before, now):
        fields = config_lib.without_places({"data.name": tree["name"]})
        trees.append(tree | {"name": fields["data.name"]})
    return config_lib.differences(*trees, ("sources",))


def _source_changes(identity: dict[str, Any], c: ConfigDict) -> list[str]:
    """Which own losses and nets have another text than that in data.json."""
    changed = []
    for field, now in (config_lib.sources(c) | features.hashes(c)).items():
        before = identity["sources"].get(field, now)  # runs of older versions have none
        if before != now:
            name = config_lib.flatten(c)[field]
            changed.append(f"{field}={name}: text {before} -> {now}")
    return changed
