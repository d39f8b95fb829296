"""Other runs that a loss looks through: their encoders with constant parameters.

An objective names such fields of its config in its attribute ``runs``, as
:func:`vae_jax.objectives.perceptual.perceptual` does: ``("features",)``. The config holds the
folder of a finished run, and the objective is called with a function in its place. The parameters
are constants of the compiled program: whole on every device, in no optimiser, and in no checkpoint.
The config names the folder, and data.json keeps the checkpoint's hash: a run goes on with the same
features, or not at all.
"""

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from ml_collections import ConfigDict

from vae_jax import config as config_lib
from vae_jax import models
from vae_jax.config import UserError
from vae_jax.mesh import hosts
from vae_jax.mesh import rules as sharding
from vae_jax.train import checkpoint

Layers = Callable[[jax.Array], list[jax.Array]]  # x_BxHxWxC → the output of each layer, B rows


class Encoder(NamedTuple):
    """The encoder of a finished run."""

    layers: Layers
    shape: tuple[int, ...]  # of the images that it sees
    hash: str  # of the checkpoint


def folders(c: ConfigDict) -> dict[str, str]:
    """{field of ``config.objective``: folder} of the runs that the objective looks through."""
    names = getattr(config_lib.resolve("objective", c.objective.name), "runs", ())
    return {name: c.objective[name] for name in names if c.objective.get(name)}


def functions(c: ConfigDict, shape: tuple[int, ...]) -> dict[str, Layers]:
    """{field: function of images of this shape}, in the place of :func:`folders`.

    Raises:
      UserError: a folder holds no finished run, or one on other images.
    """
    found = {}
    for name, folder in folders(c).items():
        encoder = encoder_of(f"objective.{name}", folder)
        if encoder.shape != tuple(shape):
            sizes = f"sees images of {encoder.shape}; want a run on {tuple(shape)}"
            raise UserError(f"objective.{name}={folder}: {sizes}")
        found[name] = encoder.layers
    return found


def hashes(c: ConfigDict) -> dict[str, str]:
    """{"objective.features": the hash of the checkpoint that is looked through}."""
    found = {}
    for name, folder in folders(c).items():
        field = f"objective.{name}"
        found[field] = encoder_of(field, folder).hash
    return found


@functools.cache
def encoder_of(field: str, folder: str) -> Encoder:
    """The encoder of the best checkpoint of a run, read once in a process.

    Its data set is not loaded: data.json says what images it sees.

    Raises:
      UserError: ``field`` names no such folder.
    """
    from vae_jax.train import identity, run  # which import the step that asks for this

    try:
        c = run.config_here(folder)
        facts = identity.read(folder)
        if facts is None:
            raise UserError("has no data.json")
        params, at = _restored(c, folder, facts)
    except UserError as error:
        why = str(error).removeprefix(f"workdir={folder}: ")
        raise UserError(f"{field}={folder}: {why}") from None
    if "encoder" not in params or c.model.name == "per_class":
        raise UserError(f"{field}={folder}: has not one encoder; want model.name=vae")
    encoder = config_lib.build("encoder", c.encoder, dtype=jnp.float32)
    variables = {"params": params["encoder"]}

    def layers(x: jax.Array) -> list[jax.Array]:
        options = {"capture_intermediates": True, "mutable": ["intermediates"]}
        _, captured = encoder.apply(variables, x, **options)
        return _outputs(captured["intermediates"])

    return Encoder(layers, tuple(facts["shape"]), checkpoint.digest(folder, at)[:16])


def _restored(c: ConfigDict, folder: str, facts: dict[str, Any]) -> tuple[Any, int]:
    """(the parameters that evaluation reads, as numpy arrays; their step)."""
    from vae_jax.train import program, run, step

    levels = int(facts["levels"])
    binary = levels == 2 or c.data.binarize != "none"
    given = {"shape": tuple(facts["shape"]), "levels": levels, "classes": len(facts["classes"])}
    with jax.ensure_compile_time_eval():  # also where a loss is being traced
        model = models.build(c, **given, binary=binary)
        shapes, places = program.shapes(c, model, sharding.make_mesh(c.mesh))
        state, meta = run.read_checkpoint(folder, shapes, places, "best")
    return jax.tree.map(hosts.fetch, step.averaged(state)), meta["step"]


def _outputs(tree: dict[str, Any]) -> list[jax.Array]:
    """The outputs of the modules that the encoder itself calls, in the order of the calls."""
    outputs = []
    for name, captured in tree.items():
        if name == "__call__":  # its own output is that of its last layer
            continue
        output = captured["__call__"][0]
        if isinstance(output, jax.Array):
            outputs.append(output)
    return outputs
