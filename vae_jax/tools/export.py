"""A run's classifier, encoder or sampler as one file that needs neither this code nor its libraries.

    python -m vae_jax.tools.export --workdir=runs/digits --what=classifier

writes WORKDIR/export/classifier.jaxexport, a program for cpu, cuda and tpu with its parameters, for a batch of any
size; classifier.json, what goes in and comes out; and predict.py, which wants JAX, numpy and Pillow alone.

    classifier  images uint8 BxHxWxC → probabilities BxY, and distance B of each code to those of training
    encoder     images uint8 BxHxWxC → mu BxD, and logvar BxD where q(z|x) is a diagonal Gaussian
    sampler     seeds uint32 B (and labels int32 B of a conditional model) → image BxHxWxC in [0, 1]

From Python, without this package: ``jax.export.deserialize(bytearray(open(path, "rb").read())).call(images)["mu"]``.
"""

import functools
import hashlib
import json
import os
import pathlib

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
from vae_jax.evaluate.run import looker
from vae_jax.mesh import hosts
from vae_jax.tools import results
from vae_jax.train import checkpoint, log, step
from vae_jax.train import program as compile_lib
from vae_jax.train import run as workdir

PLATFORMS = ("cpu", "cuda", "tpu")


def program(what, s, params, *, temperature=1.0, codes=None):
    """(function, [(shape without B, dtype) of each argument]), with the parameters inside it.

    Images are raw, 0 .. levels − 1, and read as by ``evaluation.seen``; of a fixed binarisation each meets the same
    toss, so what is said of one depends on nothing beside it. ``codes``: ``ood.Gaussians`` of the training images.
    """
    model, params = s.model, jax.tree.map(hosts.fetch, params)
    to_x = evaluation.seen(s.c, s.dataset.levels)

    def coded(image):
        x = to_x({"image": image, "id": jnp.zeros(image.shape[0], jnp.int32)})
        return x, model.encode(params, x, *model.guess(params, x))

    def classifier(image):
        x, q = coded(image)
        mu = q.mu[:, : model.code]
        logits = model.classify(params, x if model.conditional else mu)
        return {"probabilities": jax.nn.softmax(logits / temperature), "distance": codes(mu, jnp)}

    def encoder(image):
        _, q = coded(image)
        return {"mu": q.mu} | ({"logvar": q.logvar} if isinstance(q, densities.Normal) else {})

    def sampler(seed, *label):
        one = lambda i, *y: model.sample(params, jax.random.key(i)[None], *(a[None] for a in y))[0]  # noqa: E731
        z = jax.vmap(one)(seed, *label)
        return {"image": model.likelihood.mean(model.decode(params, z, *label))}

    image = [(s.dataset.shape, jnp.uint8)]
    if (what == "sampler" and model.decode is None) or (what == "classifier" and model.classify is None):
        raise UserError(f"what={what}: the run's model has none; want another")
    if what == "sampler":
        return sampler, [((), jnp.uint32)] + [((), jnp.int32)] * model.conditional
    return {"classifier": (classifier, image), "encoder": (encoder, image)}[what]


def exported(function, arguments):
    """The ``jax.export.Exported`` of a function for :data:`PLATFORMS`, the leading dimension of all arguments free."""
    (b,) = export.symbolic_shape("b")
    shapes = [jax.ShapeDtypeStruct((b, *shape), dtype) for shape, dtype in arguments]
    return export.export(compile_lib.simple(function), platforms=PLATFORMS)(*shapes)


def calibrated(s, params):
    """What a classifier learns after training: (temperature, Gaussians of training's codes, 1,001 quantiles).

    The temperature is fitted on the validation labels, 1 where there are none; the quantiles, from the least to the
    greatest, are those of the validation images' distances.
    """
    look = functools.partial(looker(s.c, s.model, s.dataset.levels, s.mesh), params)
    codes = ood.Gaussians(*tasks.gallery(s.dataset, look)[:2])
    split, temperature = s.dataset.validation, 1.0
    out = look(split)
    if (split.label >= 0).any():
        rows = split.label >= 0
        temperature = classification.temperature(out["logits"][rows], split.label[rows])
    return temperature, codes, np.quantile(codes(out["mu"]), np.linspace(0, 1, 1001))


def write(folder, what, *, which="best", data_dir="", say=print):
    """Export from a run's folder; the path of the file.

    Raises:
      UserError: there is no such run, or its model has no such part.
    """
    s, state, meta = workdir.restore(folder, which, data_dir=data_dir, say=say)
    params, about, given = step.averaged(state), {}, {}
    program(what, s, params)  # refused before it is prepared
    if what == "classifier":
        given["temperature"], given["codes"], quantiles = calibrated(s, params)
        about = {
            "temperature": given["temperature"],
            "familiarity": {"of": "distance", "quantiles": quantiles.tolist()},
        }
    function, arguments = program(what, s, params, **given)
    blob = exported(function, arguments).serialize()
    figures = epath.Path(folder, "metrics.json")
    path = os.path.join(folder, "export", f"{what}.jaxexport")
    log.replace(path, blob)
    shown = {
        "what": what,
        "sha256": hashlib.sha256(blob).hexdigest(),
        "platforms": PLATFORMS,
        "inputs": [{"shape": ["B", *shape], "dtype": jnp.dtype(dtype).name} for shape, dtype in arguments],
        "image": {"shape": s.dataset.shape, "levels": s.dataset.levels, "binarize": s.c.data.binarize},
        "classes": s.dataset.classes,
        **about,
        "data": s.c.data.name,
        "checkpoint": f"step {meta['step']} ({which})",
        "commit": results.commit(),
        "versions": results.versions(),
        "figures": json.loads(figures.read_bytes()) if figures.is_file() else None,
    }
    checkpoint.write_json(os.path.join(folder, "export", f"{what}.json"), shown)
    log.replace(os.path.join(folder, "export", "predict.py"), pathlib.Path(predict.__file__).read_bytes())
    return path


def define(values):
    flags.DEFINE_string("workdir", None, "folder of the run", flag_values=values)
    flags.DEFINE_enum("what", "classifier", ["classifier", "encoder", "sampler"], "what to export", flag_values=values)
    flags.DEFINE_string("checkpoint", "best", "best or latest", flag_values=values)
    flags.DEFINE_string("data_dir", "", "where TFDS data is, if it moved", flag_values=values)


def run(argv):
    values, _ = flags_lib.parse(argv, define)
    if not values.workdir:
        raise UserError("workdir: want --workdir=FOLDER")
    path = write(values.workdir, values.what, which=values.checkpoint, data_dir=values.data_dir)
    print(f"{path}  {len(epath.Path(path).read_bytes()) / 2**20:.1f} MiB")
    return 0


if __name__ == "__main__":
    flags_lib.main(run)
