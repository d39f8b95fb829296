"""A run's classifier, encoder or sampler as one file that needs neither this code nor Flax.

    python -m vae_jax.tools.export --workdir=runs/digits --what=classifier

writes WORKDIR/export/classifier.jaxexport, a program for cpu, cuda and tpu with its parameters, for
a batch of any size; classifier.json, its inputs and outputs; and predict.py, which needs JAX, numpy
and Pillow alone.

    classifier  images uint8 BxHxWxC → probabilities BxY, distance B to the codes of training
    encoder     images uint8 BxHxWxC → mu BxD, and logvar BxD where q(z|x) is a diagonal Gaussian
    sampler     seeds uint32 B (conditional: and labels int32 B) → image BxHxWxC in [0, 1]

From Python, without this package::

    jax.export.deserialize(bytearray(open(path, "rb").read())).call(images)["mu"]
"""

import hashlib
import json
import os
import pathlib
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
from absl import flags
from etils import epath
from jax import export

from vae_jax import cli as flags_lib
from vae_jax import distributions as densities
from vae_jax.config import UserError
from vae_jax.data import evaluation, predict
from vae_jax.evaluate import classification, ood, tasks
from vae_jax.evaluate.run import forward
from vae_jax.evaluate.subject import Subject
from vae_jax.mesh import hosts
from vae_jax.tools import results
from vae_jax.train import checkpoint, log, step
from vae_jax.train import program as compile_lib
from vae_jax.train import run as workdir

PLATFORMS = ("cpu", "cuda", "tpu")


Inputs = list[tuple[tuple[int, ...], jax.typing.DTypeLike]]  # shape without B, dtype
Program = tuple[Callable[..., dict[str, jax.Array]], Inputs]


def program(
    what: str,
    s: workdir.Setup,
    params: dict,
    *,
    temperature: float = 1.0,
    codes: ood.Gaussians | None = None,
) -> Program:
    """(function, [(shape without B, dtype) of each argument]), with the parameters inside it.

    Images are raw, 0 .. levels − 1, and read as by ``evaluation.seen``. With a fixed binarisation
    the noise is the same for each image: its result does not depend on the rest of the batch.
    ``codes`` are the Gaussians of the training images.

    Raises:
      UserError: the model has no such part.
    """
    if what == "sampler":
        return _sampler(s, params)
    model = s.model
    params = jax.tree.map(hosts.fetch, params)
    to_x = evaluation.seen(s.c, s.dataset.levels)

    def coded(image: jax.Array) -> tuple[jax.Array, object]:
        x = to_x({"image": image, "id": jnp.zeros(image.shape[0], jnp.int32)})
        return x, model.encode(params, x, *model.guess(params, x))

    def classifier(image: jax.Array) -> dict[str, jax.Array]:
        x, q = coded(image)
        mu = q.mu[:, : model.code]
        logits = model.classify(params, x if model.conditional else mu)
        return {"probabilities": jax.nn.softmax(logits / temperature), "distance": codes(mu, jnp)}

    def encoder(image: jax.Array) -> dict[str, jax.Array]:
        _, q = coded(image)
        outputs = {"mu": q.mu}
        if isinstance(q, densities.Normal):
            outputs["logvar"] = q.logvar
        return outputs

    images = [(s.dataset.shape, jnp.uint8)]
    if what == "encoder":
        return encoder, images
    if model.classify is None:
        raise UserError(f"what={what}: the run's model has none; want another")
    return classifier, images


def _sampler(s: workdir.Setup, params: dict) -> Program:
    model = s.model
    params = jax.tree.map(hosts.fetch, params)
    if model.decode is None:
        raise UserError("what=sampler: the run's model has none; want another")

    def sample(seed: jax.Array, *label: jax.Array) -> jax.Array:
        labels = [y[None] for y in label]
        return model.sample(params, jax.random.key(seed)[None], *labels)[0]

    def sampler(seed: jax.Array, *label: jax.Array) -> dict[str, jax.Array]:
        z = jax.vmap(sample)(seed, *label)
        return {"image": model.likelihood.mean(model.decode(params, z, *label))}

    inputs = [((), jnp.uint32)]
    if model.conditional:
        inputs.append(((), jnp.int32))
    return sampler, inputs


def exported(function: Callable[..., dict], arguments: Inputs) -> export.Exported:
    """A function exported for :data:`PLATFORMS`, the leading dimension of all arguments free."""
    (b,) = export.symbolic_shape("b")
    shapes = [jax.ShapeDtypeStruct((b, *shape), dtype) for shape, dtype in arguments]
    return export.export(compile_lib.simple(function), platforms=PLATFORMS)(*shapes)


def calibrated(s: workdir.Setup, params: dict) -> tuple[float, ood.Gaussians, np.ndarray]:
    """(temperature, Gaussians of the training images' codes, 1,001 quantiles) of a classifier.

    The temperature is fitted on the validation labels, 1 where there are none; the quantiles, from
    the least to the greatest, are those of the validation images' distances.
    """
    look = forward(Subject(s.c, s.model, params, s.dataset, s.mesh))
    codes = ood.Gaussians(*tasks.gallery(s.dataset, look)[:2])
    split = s.dataset.validation
    temperature = 1.0
    out = look(split)
    if (split.label >= 0).any():
        rows = split.label >= 0
        temperature = classification.temperature(out["logits"][rows], split.label[rows])
    return temperature, codes, np.quantile(codes(out["mu"]), np.linspace(0, 1, 1001))


def write(
    folder: str,
    what: str,
    *,
    which: str | int = "best",
    data_dir: str = "",
    say: Callable[[str], None] = print,
) -> str:
    """Export from a run's folder; the path of the file.

    Raises:
      UserError: there is no such run, or its model has no such part.
    """
    s, state, meta = workdir.restore(folder, which, data_dir=data_dir, say=say)
    params = step.averaged(state)
    about = {}
    function, arguments = program(what, s, params)
    if what == "classifier":
        temperature, codes, quantiles = calibrated(s, params)
        function, _ = program(what, s, params, temperature=temperature, codes=codes)
        about["temperature"] = temperature
        about["familiarity"] = {"of": "distance", "quantiles": quantiles.tolist()}
    blob = exported(function, arguments).serialize()
    figures = epath.Path(folder, "metrics.json")
    path = os.path.join(folder, "export", f"{what}.jaxexport")
    log.replace(path, blob)
    inputs = []
    for shape, dtype in arguments:
        inputs.append({"shape": ["B", *shape], "dtype": jnp.dtype(dtype).name})
    image = {"shape": s.dataset.shape, "levels": s.dataset.levels}
    image["binarize"] = s.c.data.binarize
    metadata = {
        "what": what,
        "sha256": hashlib.sha256(blob).hexdigest(),
        "platforms": PLATFORMS,
        "inputs": inputs,
        "image": image,
        "classes": s.dataset.classes,
        **about,
        "data": s.c.data.name,
        "checkpoint": f"step {meta['step']} ({which})",
        "commit": results.commit(),
        "versions": results.versions(),
        "figures": json.loads(figures.read_bytes()) if figures.is_file() else None,
    }
    checkpoint.write_json(os.path.join(folder, "export", f"{what}.json"), metadata)
    source = pathlib.Path(predict.__file__).read_bytes()
    log.replace(os.path.join(folder, "export", "predict.py"), source)
    return path


def define(values: flags.FlagValues) -> None:
    """Declare the flags of this script."""
    kinds = ["classifier", "encoder", "sampler"]
    flags.DEFINE_enum("what", "classifier", kinds, "what to export", flag_values=values)
    flags.DEFINE_string("workdir", None, "folder of the run", flag_values=values)
    flags.DEFINE_string("checkpoint", "best", "best or latest", flag_values=values)
    moved = "where TFDS data is, if it moved"
    flags.DEFINE_string("data_dir", "", moved, flag_values=values)


def run(argv: list[str]) -> int:
    """Export what the flags name; returns the exit code."""
    values, _ = flags_lib.parse(argv, define)
    if not values.workdir:
        raise UserError("workdir: want --workdir=FOLDER")
    options = {"which": values.checkpoint, "data_dir": values.data_dir}
    path = write(values.workdir, values.what, **options)
    print(f"{path}  {len(epath.Path(path).read_bytes()) / 2**20:.1f} MiB")
    return 0


if __name__ == "__main__":
    flags_lib.main(run)
