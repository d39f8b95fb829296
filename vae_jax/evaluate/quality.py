"""How good the images of a run are, as figures.

    python -m vae_jax.evaluate.quality --workdir=runs/mnist --features=runs/mnist_cnn --images=5000

Writes quality.json into the run's folder and prints it. Samples are means of p(x|z) with z from the prior. Distances
between sets of images are taken in the features of another run of ours, one that learnt labels: the latent means that
its classifier looks at. They depend on that net, so its checkpoint's hash is in their names, and they are not the
figures that papers give for Inception's features. For those, or any others, write a function around your own weights,
uint8 images_NxHxWxC from 0 to 255 → features_NxF, and give ``--features=my_file:my_function``: the names then have
``my_file_my_function`` in the place of the hash.

The reference is a set of N training images. ``fid_floor`` is what N test images score against it, as would a perfect
sampler: of the same distribution, and seen by neither net. ``fid_halves`` is the distance between the reference and N
other training images: the noise of N images alone, lower than the floor where features know training images by heart.
"""

import json
import os

import jax
import jax.numpy as jnp
import numpy as np
from absl import flags

from vae_jax import cli as flags_lib
from vae_jax import config as config_lib
from vae_jax import data
from vae_jax.config import UserError
from vae_jax.data import evaluation
from vae_jax.mesh import store
from vae_jax.train import checkpoint, step
from vae_jax.train import program as compile_lib
from vae_jax.train import run as workdir

BATCH = 250  # images in a call


def frechet(a_NxF, b_MxF):
    r"""‖μ_a − μ_b‖² + tr(Σ_a + Σ_b − 2 (Σ_a^½ Σ_b Σ_a^½)^½): the squared 2-Wasserstein distance of two Gaussians.

    Heusel et al. 2017 (arXiv:1706.08500), eq. 6. Of finite sets it is biased upwards, so compare equal N only.
    """
    a, b = (np.asarray(v, np.float64) for v in (a_NxF, b_MxF))
    cov_a, cov_b = np.cov(a.T).reshape(a.shape[1], -1), np.cov(b.T).reshape(a.shape[1], -1)
    value, vector = np.linalg.eigh(cov_a)
    root = (vector * np.sqrt(np.maximum(value, 0))) @ vector.T
    cross = np.sqrt(np.maximum(np.linalg.eigvalsh(root @ cov_b @ root), 0)).sum()
    return float(
        ((a.mean(0) - b.mean(0)) ** 2).sum() + np.trace(cov_a) + np.trace(cov_b) - 2 * cross
    )


def kernel_distance(a_NxF, b_MxF):
    r"""Unbiased squared maximum mean discrepancy with k(a, b) = (a·b/F + 1)³ (KID; Bińkowski et al. 2018,
    arXiv:1801.01401, section 4)."""
    a, b = (np.asarray(v, np.float64) for v in (a_NxF, b_MxF))

    def kernel(u, v):
        return (u @ v.T / a.shape[1] + 1) ** 3

    within = 0.0
    for u in (a, b):
        k = kernel(u, u)
        within += (k.sum() - np.trace(k)) / (len(u) * (len(u) - 1))
    return float(within - 2 * kernel(a, b).mean())


def precision_recall(real_NxF, made_MxF, k=3):
    """(share of made images within the reach of a real one, share of real ones within the reach of a made one).

    An image's reach is its distance to its k-th nearest neighbour of its own set (Kynkäänniemi et al. 2019,
    arXiv:1904.06991, eq. 1 and 2).
    """
    from sklearn.metrics import pairwise_distances

    def within(points, others):  # share of others within the reach of any of points
        reach = np.sort(pairwise_distances(points), axis=1)[:, k]
        return float((pairwise_distances(others, points) <= reach).any(1).mean())

    return within(real_NxF, made_MxF), within(made_MxF, real_NxF)


def psnr(a_NxHxWxC, b_NxHxWxC):
    """10 log₁₀ (1 / mean squared error) of each image in [0, 1]; decibels, shape N."""
    error = ((np.asarray(a_NxHxWxC, np.float64) - b_NxHxWxC) ** 2).mean((1, 2, 3))
    return -10 * np.log10(np.maximum(error, 1e-10))


def ssim(a_NxHxWxC, b_NxHxWxC):
    r"""Structural similarity of images in [0, 1], the mean over windows and channels; shape N.

    .. math:: \frac{(2\mu_a\mu_b + c_1)(2\sigma_{ab} + c_2)}{(\mu_a^2 + \mu_b^2 + c_1)(\sigma_a^2 + \sigma_b^2 + c_2)}

    Gaussian windows of σ = 1.5 cut off at 11 x 11, c = (0.01², 0.03²), windows wholly inside the image: Wang et al.
    2004 (IEEE TIP 13), eq. 13, as scikit-image has it with ``gaussian_weights`` and population covariances.
    """
    from scipy.ndimage import gaussian_filter

    a, b = (np.asarray(v, np.float64) for v in (a_NxHxWxC, b_NxHxWxC))
    if min(a.shape[1:3]) < 11:
        raise UserError(f"images of {a.shape[1]}x{a.shape[2]}: a window of SSIM has 11x11 pixels")

    def mean(v):
        return gaussian_filter(v, 1.5, truncate=3.5, axes=(1, 2))[:, 5:-5, 5:-5]

    mu_a, mu_b = mean(a), mean(b)
    var_a, var_b, cov = mean(a * a) - mu_a**2, mean(b * b) - mu_b**2, mean(a * b) - mu_a * mu_b
    c1, c2 = 0.01**2, 0.03**2
    value = (
        (2 * mu_a * mu_b + c1) * (2 * cov + c2) / ((mu_a**2 + mu_b**2 + c1) * (var_a + var_b + c2))
    )
    return value.mean((1, 2, 3))


def sharpness(image_NxHxWxC):
    """Mean variance of the images' Laplacian, channels apart."""
    from scipy.ndimage import laplace

    edges = laplace(np.asarray(image_NxHxWxC, np.float64), axes=(1, 2))
    return float(edges.var((1, 2)).mean())


def figures(s, params, see, mark, n):
    """({name: value}, {name: images}) of n images each, at most half the training set: test, reconstructions, samples.

    ``s``: the run's set-up. ``see``: images_NxHxWxC in [0, 1], binarised where the run's are → features_NxF.
    """
    test, train, key = s.dataset.test.image, s.dataset.train.image, step.stream(s.c.seed, "quality")
    n = min(n, len(test), len(train) // 2)
    to_x = compile_lib.simple(evaluation.inputs(s.c, s.dataset.levels))
    every = len(train) // n
    sets = {
        "reference": train[np.arange(n) * every],
        "other": train[np.arange(n) * every + every // 2],
        "test": test,
    }
    given = {
        name: to_x({"image": jnp.asarray(x[:n]), "id": jnp.arange(n)}) for name, x in sets.items()
    }

    def drawn(params, key, y):
        return s.model.likelihood.mean(
            s.model.decode(params, s.model.sample(params, jax.random.split(key, BATCH), y), y)
        )

    def again(params, x):
        y = s.model.map_label(params, x)
        return s.model.likelihood.mean(s.model.decode(params, s.model.encode(params, x, y).mu, y))

    turns = s.model.label_turns(BATCH)
    drawn, calls = compile_lib.simple(drawn), -(-n // BATCH)
    made = np.concatenate([drawn(params, jax.random.fold_in(key, i), turns) for i in range(calls)])[
        :n
    ]
    rebuilt = in_batches(compile_lib.simple(lambda x: again(params, x)), given["test"])
    seen = {k: in_batches(see, v) for k, v in (given | {"made": made}).items()}
    precision, recall = precision_recall(seen["reference"], seen["made"])
    data_sharpness = sharpness(given["test"])
    found = {
        "n": n,
        f"fid_{mark}": frechet(seen["reference"], seen["made"]),
        f"fid_floor_{mark}": frechet(seen["reference"], seen["test"]),
        f"fid_halves_{mark}": frechet(seen["reference"], seen["other"]),
        f"kid_{mark}": kernel_distance(seen["reference"], seen["made"]),
        f"kid_floor_{mark}": kernel_distance(seen["reference"], seen["test"]),
        f"precision_{mark}": precision,
        f"recall_{mark}": recall,
        "psnr": float(psnr(given["test"], rebuilt).mean()),
        "sharpness_samples": sharpness(made) / data_sharpness,
        "sharpness_reconstructions": sharpness(rebuilt) / data_sharpness,
    }
    if min(test.shape[1:3]) >= 11:
        found["ssim"] = float(ssim(given["test"], rebuilt).mean())
    return found, {"test": np.asarray(given["test"]), "reconstructions": rebuilt, "samples": made}


def in_batches(function, x_NxHxWxC):
    """``function`` of :data:`BATCH` images at a time, the last batch filled up with its first image again."""
    out = []
    for index, mask in data.eval_batches(len(x_NxHxWxC), BATCH):
        out.append(np.asarray(function(x_NxHxWxC[index]))[mask])
    return np.concatenate(out)


def of_run(folder, shape, data_dir=""):
    """(mark, see) of a run that learnt labels: its checkpoint's hash, and x → the latent means of its classifier."""
    net, state, meta = workdir.restore(folder, data_dir=data_dir)
    if net.model.classify is None or net.model.spec.labelled:
        raise UserError(
            f"features={folder}: its latent means know no labels; want a run of supervised or joint"
        )
    if net.dataset.shape != shape:
        raise UserError(
            f"features={folder}: sees images of {net.dataset.shape}; want a run on {shape}"
        )
    params = step.averaged(state)
    see = compile_lib.simple(lambda x: net.model.encode(params, x).mu[:, : net.model.spec.code])
    return checkpoint.digest(folder, meta["step"])[:8], see


def of_function(name):
    """(mark, see) of the user's ``file:function``, uint8 images_NxHxWxC → features_NxF, called outside any program."""
    function = config_lib.own("features", name)

    def see(x_NxHxWxC):
        image = np.round(255 * np.clip(np.asarray(x_NxHxWxC), 0, 1)).astype(np.uint8)
        found = np.asarray(function(image))
        if found.ndim != 2 or len(found) != len(image) or not np.isfinite(found).all():
            said = f"{found.shape} for {len(image)} images"
            raise UserError(
                f"features={name}: gives {said}; want finite numbers, one row of features an image"
            )
        return found

    file, _, attribute = name.rpartition(":")
    return f"{os.path.basename(file).removesuffix('.py')}_{attribute}", see


def measure(folder, features, images, *, data_dir=""):
    """(config, figures, images) of the best checkpoint of a run, in the features of another one on the same data or of
    the user's function: see :func:`figures`."""
    s, state, _ = workdir.restore(folder, data_dir=data_dir)
    if s.model.decode is None:
        raise UserError(f"workdir={folder}: makes no images; want a run with a decoder")
    own = ":" in features and not store.remote(features)
    mark, see = of_function(features) if own else of_run(features, s.dataset.shape, data_dir)
    return s.c, *figures(s, step.averaged(state), see, mark, images)


def define(values):
    flags.DEFINE_string("workdir", None, "folder of the run", flag_values=values)
    flags.DEFINE_string(
        "features", None, "folder of a run that learnt labels, or file:function", flag_values=values
    )
    flags.DEFINE_integer("images", 5000, "of each set, at most", lower_bound=10, flag_values=values)
    flags.DEFINE_string("data_dir", "", "where TFDS data is, if it moved", flag_values=values)


def run(argv):
    values, _ = flags_lib.parse(argv, define)
    for name, right in (("workdir", "FOLDER"), ("features", "FOLDER or FILE:FUNCTION")):
        if not values[name].value:
            raise UserError(f"{name}: want --{name}={right}")
    _, found, _ = measure(values.workdir, values.features, values.images, data_dir=values.data_dir)
    checkpoint.write_json(os.path.join(values.workdir, "quality.json"), found)
    print(json.dumps(found, indent=1))
    return 0


if __name__ == "__main__":
    flags_lib.main(run)
