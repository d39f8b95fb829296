"""How good the images of a run are, in numbers.

    python eval.py --workdir=runs/mnist --tasks=quality --features=runs/mnist_cnn
    python -m vae_jax.evaluate.quality --workdir=runs/mnist --features=runs/mnist_cnn --images=5000

The first puts them on the run's page and into its metrics.json. The second evaluates nothing else,
writes quality.json into the run's folder, and prints it. Samples are means of p(x|z) with z from
the prior. Distances between sets of images are taken in the features of another run of ours, one
that learnt labels: the latent means that its classifier reads. They depend on that net, so its
checkpoint's hash is in their names, and they are not the numbers that papers report for Inception's
features. For those, or any others, write a function around your own weights, uint8 images_NxHxWxC
from 0 to 255 → features_NxF, and pass ``--features=my_file:my_function``: the names then have
``my_file_my_function`` in the place of the hash.

The reference is a set of N training images. ``fid_floor`` is what N test images score against it,
as would a perfect sampler: of the same distribution, and in the training set of neither net.
``fid_halves`` is the distance between the reference and N other training images: the noise of N
images alone, lower than the floor where features overfit training images.
"""

import json
import os
import re
from collections.abc import Callable, Iterable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from absl import flags
from ml_collections import ConfigDict

from vae_jax import cli as flags_lib
from vae_jax import config as config_lib
from vae_jax import data
from vae_jax.config import UserError
from vae_jax.data import evaluation
from vae_jax.evaluate.subject import Subject, restored
from vae_jax.evaluate.trained import why_unclassified
from vae_jax.mesh import store
from vae_jax.report.metrics import Metric, register
from vae_jax.train import checkpoint, log, step
from vae_jax.train import program as compile_lib
from vae_jax.train import run as workdir

BATCH = 250  # images in a call
IMAGES = 5_000  # of each set, at most
ROWS = {  # stem of a metric's name → title, unit, better, meaning
    "quality_images": ("Images of quality", "", "", "How many images each set has."),
    "fid_floor": ("FID of test images", "", "lower", "What a perfect sampler would have as FID."),
    "fid_halves": ("FID of training images", "", "lower", "The FID that the noise of N images is."),
    "fid": ("FID", "", "lower", "Fréchet distance of samples and training images."),
    "reconstruction_fid": ("FID of reconstructions", "", "lower", "Of test images, as of samples."),
    "kid_floor": ("KID of test images", "", "lower", "What a perfect sampler would have as KID."),
    "kid": ("KID", "", "lower", "Kernel distance of samples and training images."),
    "precision": ("Precision", "%", "higher", "Samples within the reach of a training image."),
    "recall": ("Recall", "%", "higher", "Training images within the reach of a sample."),
    "psnr": ("PSNR", "dB", "higher", "Of reconstructions: −10 log₁₀ of the mean squared error."),
    "ssim": ("SSIM", "", "higher", "Structural similarity of test images and reconstructions."),
    "sharpness_samples": ("Sharpness of samples", "", "", "1 is the test images'."),
    "sharpness_reconstructions": ("Sharpness of reconstructions", "", "", "1 is the test images'."),
}
_NAME = re.compile(rf"(?P<stem>{'|'.join(ROWS)})(_(?P<mark>.+))?")
See = Callable[[jax.Array], jax.Array]  # images_NxHxWxC in [0, 1] → features_NxF
Images = dict[str, np.ndarray]


def frechet(a_NxF: np.ndarray, b_MxF: np.ndarray) -> float:
    r"""‖μ_a − μ_b‖² + tr(Σ_a + Σ_b − 2 (Σ_a^½ Σ_b Σ_a^½)^½).

    The squared 2-Wasserstein distance of two Gaussians. Heusel et al. 2017 (arXiv:1706.08500),
    eq. 6. Of finite sets it is biased upwards, so compare equal N only.
    """
    a = np.asarray(a_NxF, np.float64)
    b = np.asarray(b_MxF, np.float64)
    cov_a = np.cov(a.T).reshape(a.shape[1], -1)
    cov_b = np.cov(b.T).reshape(a.shape[1], -1)
    value, vector = np.linalg.eigh(cov_a)
    root = (vector * np.sqrt(np.maximum(value, 0))) @ vector.T
    cross = np.sqrt(np.maximum(np.linalg.eigvalsh(root @ cov_b @ root), 0)).sum()
    shift = ((a.mean(0) - b.mean(0)) ** 2).sum()
    return float(shift + np.trace(cov_a) + np.trace(cov_b) - 2 * cross)


def kernel_distance(a_NxF: np.ndarray, b_MxF: np.ndarray) -> float:
    r"""Unbiased squared maximum mean discrepancy with k(a, b) = (a·b/F + 1)³.

    KID; Bińkowski et al. 2018, arXiv:1801.01401, section 4.
    """
    a = np.asarray(a_NxF, np.float64)
    b = np.asarray(b_MxF, np.float64)

    def kernel(u: np.ndarray, v: np.ndarray) -> np.ndarray:
        return (u @ v.T / a.shape[1] + 1) ** 3

    within = 0.0
    for u in (a, b):
        k = kernel(u, u)
        within += (k.sum() - np.trace(k)) / (len(u) * (len(u) - 1))
    return float(within - 2 * kernel(a, b).mean())


def precision_recall(
    real_NxF: np.ndarray, samples_MxF: np.ndarray, k: int = 3
) -> tuple[float, float]:
    """(share of samples within the reach of a real image, share of real ones within a sample's).

    An image's reach is its distance to its k-th nearest neighbour of its own set (Kynkäänniemi et
    al. 2019, arXiv:1904.06991, eq. 1 and 2).
    """
    from sklearn.metrics import pairwise_distances

    def within(points: np.ndarray, others: np.ndarray) -> float:
        """The share of others within the reach of any of points."""
        reach = np.sort(pairwise_distances(points), axis=1)[:, k]
        return float((pairwise_distances(others, points) <= reach).any(1).mean())

    return within(real_NxF, samples_MxF), within(samples_MxF, real_NxF)


def psnr(a_NxHxWxC: np.ndarray, b_NxHxWxC: np.ndarray) -> np.ndarray:
    """10 log₁₀ (1 / mean squared error) of each image in [0, 1]; decibels, shape N."""
    error = ((np.asarray(a_NxHxWxC, np.float64) - b_NxHxWxC) ** 2).mean((1, 2, 3))
    return -10 * np.log10(np.maximum(error, 1e-10))


def ssim(a_NxHxWxC: np.ndarray, b_NxHxWxC: np.ndarray) -> np.ndarray:
    r"""Structural similarity of images in [0, 1], the mean over windows and channels; shape N.

    .. math:: \frac{(2\mu_a\mu_b + c_1)(2\sigma_{ab} + c_2)}
              {(\mu_a^2 + \mu_b^2 + c_1)(\sigma_a^2 + \sigma_b^2 + c_2)}

    Gaussian windows of σ = 1.5 cut off at 11 x 11, c = (0.01², 0.03²), windows wholly inside the
    image: Wang et al. 2004 (IEEE TIP 13), eq. 13, as scikit-image has it with ``gaussian_weights``
    and population covariances.
    """
    from scipy.ndimage import gaussian_filter

    a = np.asarray(a_NxHxWxC, np.float64)
    b = np.asarray(b_NxHxWxC, np.float64)
    if min(a.shape[1:3]) < 11:
        raise UserError(f"images of {a.shape[1]}x{a.shape[2]}: a window of SSIM has 11x11 pixels")

    def mean(v: np.ndarray) -> np.ndarray:
        return gaussian_filter(v, 1.5, truncate=3.5, axes=(1, 2))[:, 5:-5, 5:-5]

    mu_a = mean(a)
    mu_b = mean(b)
    var_a = mean(a * a) - mu_a**2
    var_b = mean(b * b) - mu_b**2
    cov = mean(a * b) - mu_a * mu_b
    c1 = 0.01**2
    c2 = 0.03**2
    value = (2 * mu_a * mu_b + c1) * (2 * cov + c2)
    value /= (mu_a**2 + mu_b**2 + c1) * (var_a + var_b + c2)
    return value.mean((1, 2, 3))


def sharpness(image_NxHxWxC: np.ndarray) -> float:
    """Mean variance of the images' Laplacian, channel by channel."""
    from scipy.ndimage import laplace

    edges = laplace(np.asarray(image_NxHxWxC, np.float64), axes=(1, 2))
    return float(edges.var((1, 2)).mean())


class Ground(NamedTuple):
    """What samples of a run are compared with: n images of each set, and their features."""

    n: int
    images: Images  # reference, other: training images; test; reconstructions of test
    features: dict[str, np.ndarray]  # of each of them, NxF


def figures(subject: Subject, see: See, mark: str, n: int) -> tuple[dict[str, float], Images]:
    """({name: value}, {name: images}) of n images each, at most half the training set.

    ``see``: images, binarised where the run's are → features_NxF. ``mark``: the features' name. The
    images: test, reconstructions, samples.
    """
    known = ground(subject, see, n)
    drawn = samples(subject, known.n)
    values = of_ground(known, mark) | of_samples(known, see, drawn, mark)
    shown = {name: known.images[name] for name in ("test", "reconstructions")}
    return values, shown | {"samples": drawn}


def ground(subject: Subject, see: See, n: int) -> Ground:
    """The sets of n images each, at most half the training set, and their features."""
    n = min(n, len(subject.data.test.image), len(subject.data.train.image) // 2)
    images = _images(subject, n)
    features = {name: in_batches(see, of_set) for name, of_set in images.items()}
    return Ground(n, images, features)


def of_ground(known: Ground, mark: str) -> dict[str, float]:
    """{name: value} of what no sample changes: the floors, and reconstructions of test images."""
    reference = known.features["reference"]
    test = known.images["test"]
    rebuilt = known.images["reconstructions"]
    values = {
        "n": known.n,
        f"fid_floor_{mark}": frechet(reference, known.features["test"]),
        f"fid_halves_{mark}": frechet(reference, known.features["other"]),
        f"reconstruction_fid_{mark}": frechet(reference, known.features["reconstructions"]),
        f"kid_floor_{mark}": kernel_distance(reference, known.features["test"]),
        "psnr": float(psnr(test, rebuilt).mean()),
        "sharpness_reconstructions": sharpness(rebuilt) / sharpness(test),
    }
    if min(test.shape[1:3]) >= 11:
        values["ssim"] = float(ssim(test, rebuilt).mean())
    return values


def of_samples(known: Ground, see: See, drawn: np.ndarray, mark: str) -> dict[str, float]:
    """{name: value} of samples, NxHxWxC."""
    reference = known.features["reference"]
    features = in_batches(see, drawn)
    precision, recall = precision_recall(reference, features)
    return {
        f"fid_{mark}": frechet(reference, features),
        f"kid_{mark}": kernel_distance(reference, features),
        f"precision_{mark}": precision,
        f"recall_{mark}": recall,
        "sharpness_samples": sharpness(drawn) / sharpness(known.images["test"]),
    }


def samples(subject: Subject, n: int) -> np.ndarray:
    """n means of p(x|z) with z from the prior."""
    model = subject.model
    key = step.stream(subject.config.seed, "quality")

    @compile_lib.simple
    def drawn(params: dict, key: jax.Array, y: jax.Array | None) -> jax.Array:
        z = model.sample(params, jax.random.split(key, BATCH), y)
        return model.likelihood.mean(model.decode(params, z, y))

    turns = model.label_turns(BATCH)
    calls = range(-(-n // BATCH))
    parts = [drawn(subject.params, jax.random.fold_in(key, i), turns) for i in calls]
    return np.concatenate(parts)[:n]


def _images(subject: Subject, n: int) -> Images:
    """Two sets of n training images, n test images and their reconstructions."""
    model = subject.model
    params = subject.params
    to_x = compile_lib.simple(evaluation.inputs(subject.config, subject.levels))
    train = subject.data.train.image
    every = len(train) // n

    def inputs(image: np.ndarray) -> jax.Array:
        return to_x({"image": jnp.asarray(image), "id": jnp.arange(n)})

    @compile_lib.simple
    def rebuilt(x: jax.Array) -> jax.Array:
        y = model.map_label(params, x)
        z = model.encode(params, x, y).mu
        return model.likelihood.mean(model.decode(params, z, y))

    test = inputs(subject.data.test.image[:n])
    sets = {
        "reference": inputs(train[np.arange(n) * every]),
        "other": inputs(train[np.arange(n) * every + every // 2]),
        "test": test,
        "reconstructions": in_batches(rebuilt, test),
    }
    return {name: np.asarray(images) for name, images in sets.items()}


def in_batches(function: See, x_NxHxWxC: jax.Array) -> np.ndarray:
    """``function`` of :data:`BATCH` images at a time; the first image fills up the last batch."""
    out = []
    for index, mask in data.eval_batches(len(x_NxHxWxC), BATCH):
        out.append(np.asarray(function(x_NxHxWxC[index]))[mask])
    return np.concatenate(out)


def of_run(folder: str, shape: tuple[int, int, int], data_dir: str = "") -> tuple[str, See]:
    """(mark, see) of a run that learnt labels: its checkpoint's hash, and x → its latent means."""
    net, state, meta = workdir.restore(folder, data_dir=data_dir)
    params = step.averaged(state)
    if net.model.spec.labelled or why_unclassified(Subject.of(net, params)):
        raise UserError(
            f"features={folder}: its latent means know no labels; want a run of supervised or joint"
        )
    if net.dataset.shape != shape:
        raise UserError(
            f"features={folder}: sees images of {net.dataset.shape}; want a run on {shape}"
        )

    @compile_lib.simple
    def see(x: jax.Array) -> jax.Array:
        return net.model.encode(params, x).mu[:, : net.model.spec.code]

    return checkpoint.digest(folder, meta["step"])[:8], see


def of_function(name: str) -> tuple[str, See]:
    """(mark, see) of the user's ``file:function``, called outside any program.

    It maps uint8 images_NxHxWxC → features_NxF.
    """
    function = config_lib.own("features", name)

    def see(x_NxHxWxC: jax.Array) -> np.ndarray:
        image = np.round(255 * np.clip(np.asarray(x_NxHxWxC), 0, 1)).astype(np.uint8)
        features = np.asarray(function(image))
        right = features.ndim == 2 and len(features) == len(image)
        if not right or not np.isfinite(features).all():
            said = f"{features.shape} for {len(image)} images"
            raise UserError(
                f"features={name}: gives {said}; want finite numbers, one row of features an image"
            )
        return features

    file, _, attribute = name.rpartition(":")
    return f"{os.path.basename(file).removesuffix('.py')}_{attribute}", see


def check(features: str) -> None:
    """Raise where there is no such run, or no such function."""
    if ":" in features and not store.remote(features):
        config_lib.own("features", features)
        return
    try:
        workdir.read_config(features)
    except UserError as error:
        raise UserError(f"features={features}: {str(error).partition(': ')[2]}") from None


def named(features: str, shape: tuple[int, int, int], data_dir: str = "") -> tuple[str, See]:
    """(mark, see) of the folder of a run on images of this shape, or of the user's function."""
    if ":" in features and not store.remote(features):
        return of_function(features)
    return of_run(features, shape, data_dir)


def measure(
    folder: str, features: str, images: int, *, data_dir: str = ""
) -> tuple[ConfigDict, dict[str, Any], Images]:
    """(config, metrics, images) of the best checkpoint of a run: see :func:`figures`.

    ``features``: another run on the same data, or the user's function.
    """
    subject = restored(folder, data_dir)
    if subject.model.decode is None:
        raise UserError(f"workdir={folder}: makes no images; want a run with a decoder")
    mark, see = named(features, subject.data.shape, data_dir)
    return subject.config, *figures(subject, see, mark, images)


def describe(names: Iterable[str]) -> None:
    """Register what the report says of metrics that :func:`figures` has computed."""
    for name in names:
        match = _NAME.fullmatch(name)
        if match is None:
            continue
        title, unit, better, meaning = ROWS[match["stem"]]
        if match["mark"]:
            meaning += f" In the features {match['mark']}."
        register(Metric(name, title, unit, better, meaning))


def define(values: flags.FlagValues) -> None:
    """Declare the flags of this script."""
    described = "folder of a run that learnt labels, or file:function"
    flags.DEFINE_string("workdir", None, "folder of the run", flag_values=values)
    flags.DEFINE_string("features", None, described, flag_values=values)
    flags.DEFINE_integer(
        "images", IMAGES, "of each set, at most", lower_bound=10, flag_values=values
    )
    flags.DEFINE_string("data_dir", "", "where TFDS data is, if it moved", flag_values=values)


def run(argv: list[str]) -> int:
    """Measure the run that the flags name; the exit code."""
    values = flags_lib.parse_fixed(argv, define)
    for name, right in (("workdir", "FOLDER"), ("features", "FOLDER or FILE:FUNCTION")):
        if not values[name].value:
            raise UserError(f"{name}: want --{name}={right}")
    log.check_writable(os.path.join(values.workdir, "quality.json"))
    options = {"data_dir": values.data_dir}
    _, metrics, _ = measure(values.workdir, values.features, values.images, **options)
    checkpoint.write_json(os.path.join(values.workdir, "quality.json"), metrics)
    print(json.dumps(metrics, indent=1))
    return 0


if __name__ == "__main__":
    flags_lib.main(run)
