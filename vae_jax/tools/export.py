"""A run's classifier, encoder or sampler as one file that needs neither this code nor Flax.

    python -m vae_jax.tools.export --workdir=runs/digits --what=classifier

writes WORKDIR/export/classifier.jaxexport, a program for cpu, cuda and tpu with its parameters, for
a batch of any size; classifier.json, its inputs and outputs; and predict.py, which needs JAX, numpy
and Pillow alone.

    classifier  images uint8 BxHxWxC → probabilities BxY, distance B to the codes of training, and
                neg_elbo B (nats) where there is a decoder
    encoder     images uint8 BxHxWxC → mu BxD, and logvar BxD where q(z|x) is a diagonal Gaussian
    sampler     seeds uint32 B (conditional: and labels int32 B) → image BxHxWxC in [0, 1]
    detector    images uint8 BxHxWxC → box BxMx4 (x, y, w, h in pixels), label BxM, score BxM in
                [0, 1], and keep BxM: the objects that are left after suppression
    maps        images uint8 BxHxWxC → anomaly BxHxW: how unusual each pixel is

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
from vae_jax import data
from vae_jax import distributions as densities
from vae_jax.config import UserError
from vae_jax.data import evaluation, predict, scenes
from vae_jax.distributions import example_keys
from vae_jax.evaluate import classification, likelihood, ood, ood_scores, tasks
from vae_jax.evaluate.run import forward
from vae_jax.evaluate.subject import Subject
from vae_jax.evaluate.trained import why_unclassified
from vae_jax.mesh import hosts
from vae_jax.models import boxes
from vae_jax.tools import results
from vae_jax.train import checkpoint, log, step
from vae_jax.train import program as compile_lib
from vae_jax.train import run as workdir

PLATFORMS = ("cpu", "cuda", "tpu")
ELBO_DRAWS = 4
# Sets of scores among which an export chooses.
SCORES = (("distance",), ("neg_elbo",), ("distance", "neg_elbo"))
IMAGES = 5_000  # of validation and of the test set, by which familiarity is measured, at most


Inputs = list[tuple[tuple[int, ...], jax.typing.DTypeLike]]  # shape without B, dtype
Program = tuple[Callable[..., dict[str, jax.Array]], Inputs]
Tell = Callable[[str], object]


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
    if what in OTHERS:
        return OTHERS[what](s, params)
    model = s.model
    params = jax.tree.map(hosts.fetch, params)
    to_x = _inputs(evaluation.seen, s)
    neg_elbo = _neg_elbo(s, params)

    def coded(image: jax.Array) -> tuple[jax.Array, object]:
        x = to_x(image)
        return x, model.encode(params, x, model.map_label(params, x))

    def classifier(image: jax.Array) -> dict[str, jax.Array]:
        x, q = coded(image)
        mu = q.mu[:, : model.spec.code]
        logits = model.classify(params, x)
        out = {"probabilities": jax.nn.softmax(logits / temperature), "distance": codes(mu, jnp)}
        if model.decode is not None:
            out["neg_elbo"] = neg_elbo(image)
        return out

    def encoder(image: jax.Array) -> dict[str, jax.Array]:
        _, q = coded(image)
        outputs = {"mu": q.mu}
        if isinstance(q, densities.Normal):
            outputs["logvar"] = q.logvar
        return outputs

    images = [(s.dataset.shape, jnp.uint8)]
    if what == "encoder":
        return encoder, images
    why = why_unclassified(Subject.of(s, params))
    if why:
        raise UserError(f"what={what}: {why}; want another, such as --what=encoder")
    return classifier, images


def _inputs(reader: Callable, s: workdir.Setup) -> Callable[[jax.Array], jax.Array]:
    """uint8 images of any number → the nets' inputs, each image with the noise of example 0."""
    to_x = reader(s.c, s.dataset.levels)

    def one(image: jax.Array) -> jax.Array:
        return to_x({"image": image[None], "id": jnp.zeros(1, jnp.int32)})[0]

    return jax.vmap(one)


def _neg_elbo(s: workdir.Setup, params: dict) -> Callable[[jax.Array], jax.Array]:
    """−ELBO of each image in nats, the mean of :data:`ELBO_DRAWS` draws that all images share."""
    to_x = _inputs(evaluation.inputs, s)
    key = step.stream(s.c.seed, "familiarity")

    def neg_elbo(image: jax.Array) -> jax.Array:
        ids = jnp.zeros(image.shape[0], jnp.int32)
        d = likelihood.draws(s.model, params, to_x(image), ids, key, 0, ELBO_DRAWS)
        return -(d.log_px - d.kl.sum(-1)).mean(1)

    return neg_elbo


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
    if model.spec.labelled:
        inputs.append(((), jnp.int32))
    return sampler, inputs


def _detector(s: workdir.Setup, params: dict) -> Program:
    """The objects of each image, suppressed and kept as ``evaluate.scenes`` counts them."""
    model = s.model
    params = jax.tree.map(hosts.fetch, params)
    if model.detect is None:
        raise UserError("what=detector: the run's model finds no objects; want another")
    to_x = _inputs(evaluation.seen, s)

    def of_one(x_HxWxC: jax.Array) -> dict[str, jax.Array]:
        d = jax.tree.map(lambda leaf: leaf[0], model.detect(params, x_HxWxC[None]))
        log_p_M = jax.nn.log_softmax(d.class_logits).max(-1)
        label_M = jnp.argmax(d.class_logits, -1)
        keep_M = d.logit > 0
        if d.windows is None:  # a model that looks at windows explains each object once
            keep_M &= boxes.suppress(d.boxes, d.logit + log_p_M, label_M)
        score_M = jax.nn.sigmoid(d.logit) * jnp.exp(log_p_M)
        return {"box": d.boxes, "label": label_M, "score": score_M, "keep": keep_M}

    def detector(image: jax.Array) -> dict[str, jax.Array]:
        return jax.vmap(of_one)(to_x(image))  # the models read the length of a batch, here symbolic

    return detector, [(s.dataset.shape, jnp.uint8)]


def object_names(s: workdir.Setup, params: dict) -> list[str]:
    """The classes of what a detector finds: those of the scenes' base where it has them."""
    image = jax.ShapeDtypeStruct((1, *s.dataset.shape), jnp.float32)
    shapes = jax.eval_shape(s.model.detect, params, image)
    count = shapes.class_logits.shape[-1]
    if count == 1:
        return ["object"]
    name = s.c.data.name
    if name.startswith(scenes.PREFIX):
        base = s.c.data.copy_and_resolve_references()
        base.name, _, _ = scenes.parse(name)
        classes = data.load(base).classes
        if len(classes) == count:
            return list(classes)
    return [str(y) for y in range(count)]


def _maps(s: workdir.Setup, params: dict) -> Program:
    """``ood_scores.anomaly_maps``' ``combined`` map, each image with the noise of example 0."""
    model = s.model
    params = jax.tree.map(hosts.fetch, params)
    if model.decode is None:
        raise UserError("what=maps: the run's model has no decoder; want another")
    to_x = _inputs(evaluation.inputs, s)
    key = step.stream(s.c.seed, "familiarity")
    anomaly = ood_scores.anomaly_maps(model)

    def maps(image: jax.Array) -> dict[str, jax.Array]:
        keys_B = example_keys(key, jnp.zeros(image.shape[0], jnp.int32))
        return {"anomaly": anomaly(params, to_x(image), keys_B)["combined"]}

    return maps, [(s.dataset.shape, jnp.uint8)]


OTHERS = {"sampler": _sampler, "detector": _detector, "maps": _maps}  # than of one code an image


def usual_maximum(s: workdir.Setup, maps: Callable) -> float:
    """What the greatest pixel of a validation image's anomaly map is below in 95 of 100 images."""
    greatest = _over(maps, np.asarray(data.some(s.dataset.validation, IMAGES).image))
    return float(np.quantile(greatest["anomaly"].max((1, 2)), 0.95))


def _over(function: Callable, image_NxHxWxC: np.ndarray) -> dict[str, np.ndarray]:
    """{name: its rows} of a program of all images, 250 at a time."""
    run = compile_lib.simple(function)
    parts = []
    for index, mask in data.eval_batches(len(image_NxHxWxC), min(250, len(image_NxHxWxC))):
        out = run(image_NxHxWxC[index])
        parts.append({name: np.asarray(v)[mask] for name, v in out.items()})
    return {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}


def exported(function: Callable[..., dict], arguments: Inputs) -> export.Exported:
    """A function exported for :data:`PLATFORMS`, the leading dimension of all arguments free."""
    (b,) = export.symbolic_shape("b")
    shapes = [jax.ShapeDtypeStruct((b, *shape), dtype) for shape, dtype in arguments]
    return export.export(compile_lib.simple(function), platforms=PLATFORMS)(*shapes)


def calibrated(s: workdir.Setup, params: dict) -> tuple[float, ood.Gaussians]:
    """(temperature, Gaussians of the training images' codes) of a classifier.

    The temperature is fitted on the validation labels, 1 where there are none.
    """
    look = forward(Subject.of(s, params))
    codes = ood.Gaussians(*tasks.gallery(s.dataset, look)[:2])
    split = s.dataset.validation
    temperature = 1.0
    if (split.label >= 0).any():
        split = data.labelled(split)
        temperature = classification.temperature(look(split)["logits"], split.label)
    return temperature, codes


def unusual(image_NxHxWxC: np.ndarray, levels: int) -> dict[str, np.ndarray]:
    """Images of other kinds, by which the scores of familiarity are chosen: {kind: N images}."""
    rng = np.random.default_rng(0)
    shape = image_NxHxWxC.shape
    pixels = image_NxHxWxC.reshape(len(image_NxHxWxC), -1)
    grey = rng.integers(0, levels, (len(pixels), 1, 1, 1))
    half = image_NxHxWxC.copy()
    half[:, : shape[1] // 2] = half[::-1, : shape[1] // 2]
    kinds = {
        "flat": np.broadcast_to(grey, shape),
        "noise": rng.integers(0, levels, shape),
        "inverted": levels - 1 - image_NxHxWxC,
        "shuffled": rng.permuted(pixels, axis=1).reshape(shape),
        "halves": half,  # the upper half of one image, the lower half of another
    }
    return {kind: image.astype(np.uint8) for kind, image in kinds.items()}


def familiarity(s: workdir.Setup, classifier: Callable) -> dict:
    """What :func:`predict.familiarity` needs: which scores, and their quantiles on validation.

    Of the sets of scores in :data:`SCORES` the one is chosen, by the smallest rank over its scores,
    whose AUROC over the kinds of :func:`unusual` images is the best at its worst. ``false_alarms``:
    the share of the test images whose familiarity is below 1 and below 5 %.
    """

    def scores(image_NxHxWxC: np.ndarray) -> dict[str, np.ndarray]:
        out = _over(classifier, image_NxHxWxC)
        del out["probabilities"]
        return out

    image = np.asarray(data.some(s.dataset.validation, IMAGES).image)
    usual = scores(image)
    kinds = unusual(image, s.dataset.levels)
    others = {kind: scores(one) for kind, one in kinds.items()}
    levels = np.linspace(0, 1, 1001)
    best: dict = {}
    for names in SCORES:
        if not set(names) <= set(usual):
            continue
        quantiles = {name: np.quantile(usual[name], levels).tolist() for name in names}
        smallest = predict.smallest_rank(usual, quantiles)
        auroc = {}
        for kind, out in others.items():
            rank = predict.smallest_rank(out, quantiles)
            auroc[kind] = float(ood.auroc(-smallest, -rank))
        if not best or min(auroc.values()) > min(best["auroc"].values()):
            best = {"quantiles": quantiles, "auroc": auroc}
            best["smallest"] = np.quantile(smallest, levels).tolist()
    test = np.asarray(data.some(s.dataset.test, IMAGES).image)
    share = predict.familiarity(scores(test), best)
    best["false_alarms"] = {str(f): float((share < f).mean()) for f in (0.01, 0.05)}
    return best


def _described(what: str, s: workdir.Setup, params: dict, say: Tell) -> tuple[Program, dict]:
    """The program of an export, and what its metadata says of it alone."""
    if what == "detector":
        made = program(what, s, params)
        return made, {"objects": object_names(s, params)}
    if what == "maps":
        made = program(what, s, params)
        return made, {"usual_maximum": usual_maximum(s, made[0])}
    if what != "classifier":
        return program(what, s, params), {}
    program(what, s, params)  # raises before the work where there is no classifier
    temperature, codes = calibrated(s, params)
    made = program(what, s, params, temperature=temperature, codes=codes)
    reference = familiarity(s, made[0])
    alarms = reference["false_alarms"]["0.01"]
    names = " and ".join(reference["quantiles"])
    say(f"familiarity by {names}: below 1 % for {alarms:.1%} of the test images")
    return made, {"temperature": temperature, "familiarity": reference}


def write(
    folder: str,
    what: str = "",
    *,
    which: str | int = "best",
    data_dir: str = "",
    files: workdir.Files = workdir.UNMOVED,
    say: Tell = print,
) -> str:
    """Export from a run's folder; the path of the file. ``files``: what has moved since.

    Without ``what``, the detector of a model that finds objects, else the classifier.

    Raises:
      UserError: there is no such run, or its model has no such part.
    """
    s, state, meta = workdir.restore(folder, which, data_dir=data_dir, files=files, say=say)
    what = what or ("classifier" if s.model.detect is None else "detector")
    (function, arguments), about = _described(what, s, step.averaged(state), say)
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
    metadata["metadata_sha256"] = predict.metadata_digest(metadata)
    checkpoint.write_json(os.path.join(folder, "export", f"{what}.json"), metadata)
    source = pathlib.Path(predict.__file__).read_bytes()
    log.replace(os.path.join(folder, "export", "predict.py"), source)
    return path


def define(values: flags.FlagValues) -> None:
    """Declare the flags of this script."""
    kinds = ["classifier", "encoder", *OTHERS]
    flags.DEFINE_enum("what", "classifier", kinds, "what to export", flag_values=values)
    flags.DEFINE_string("workdir", None, "folder of the run", flag_values=values)
    flags.DEFINE_string("checkpoint", "best", "best or latest", flag_values=values)
    moved = "where TFDS data is, if it moved"
    flags.DEFINE_string("data_dir", "", moved, flag_values=values)
    flags_lib.define_files(values)


def run(argv: list[str]) -> int:
    """Export what the flags name; returns the exit code."""
    values = flags_lib.parse_fixed(argv, define)
    if not values.workdir:
        raise UserError("workdir: want --workdir=FOLDER")
    files = workdir.Files.from_flags(values)
    path = write(values.workdir, values.what, which=values.checkpoint, files=files)
    print(f"{path}  {len(epath.Path(path).read_bytes()) / 2**20:.1f} MiB")
    return 0


if __name__ == "__main__":
    flags_lib.main(run)
