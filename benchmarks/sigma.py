"""Compare two Gaussian decoders on one data set: bits per dimension, sharpness, and a picture.

python -m benchmarks.sigma --workdir=RUN --unit=RUN --out=results/sigma.json

A density of 256 grey levels has no bits per dimension, so both decoders are read as codes: a
Gaussian of one σ, integrated over the bin of each level. σ is the root mean square error on the
validation set for ``--workdir``, and 1 for ``--unit``, whose likelihood fixes it. The figure is
-(log p(x|z) - KL) of one draw of z. Sharpness is the variance of an image's Laplacian, over that of
the test images.
"""

from typing import Any

import jax
import numpy as np
from ml_collections import ConfigDict
from scipy import special

from benchmarks import common
from vae_jax import config as config_lib
from vae_jax import distributions
from vae_jax.evaluate import quality
from vae_jax.tools import results
from vae_jax.train import run, step


def log_binned_normal(x: np.ndarray, mean: np.ndarray, scale: float) -> np.ndarray:
    """log of the mass of N(mean, scale²) in the bin, 1/255 wide, of each grey level x in [0, 1].

    The bins of 0 and of 1 reach to infinity. Both edges are mirrored where they lie above the mean,
    so that the two tails that are subtracted are the small ones.
    """
    half = 0.5 / 255
    low = np.where(x == 0, -np.inf, (x - half - mean) / scale)
    high = np.where(x == 1, np.inf, (x + half - mean) / scale)
    above = low > 0
    mirrored_low = np.where(above, -high, low)
    mirrored_high = np.where(above, -low, high)
    log_high = special.log_ndtr(mirrored_high)
    log_low = special.log_ndtr(mirrored_low)
    return log_high + np.log1p(-np.exp(log_low - log_high))


def reconstructions(
    s: Any, params: dict, image: np.ndarray, key: jax.Array
) -> tuple[np.ndarray, ...]:
    """(images in [0, 1], the decoder's means, KL of each image) for one draw of z."""

    @jax.jit
    def forward(image: jax.Array, key: jax.Array) -> tuple[jax.Array, ...]:
        x = image.astype(np.float32) / 255
        draw = s.model.draw(params, x, jax.random.split(key, len(x)))
        return x, s.model.decode(params, draw.z), draw.kl.sum(-1)

    x, mean, kl = forward(image, key)
    return np.asarray(x), np.asarray(mean), np.asarray(kl)


def measure(
    name: str, workdir: str, images: int, data_dir: str
) -> tuple[ConfigDict, common.FIGURES, dict[str, np.ndarray]]:
    """(config, figures, images for the picture) of one run; ``name`` is 'optimal' or 'unit'."""
    s, state, _ = run.restore(workdir, data_dir=data_dir)
    params = step.averaged(state)
    key = step.stream(0, "sigma")
    x, mean, _ = reconstructions(s, params, s.dataset.validation.image, key)
    scale = 1.0 if name == "unit" else float(np.sqrt(np.mean((x - mean) ** 2)))
    test = s.dataset.test.image[:images]
    n = len(test)
    x, mean, kl = (a.astype(np.float64) for a in reconstructions(s, params, test, key))
    log_px = log_binned_normal(x, mean, scale).sum((1, 2, 3))
    bits = distributions.bits_per_dim(kl - log_px, s.dataset.shape)
    z = s.model.prior(params).sample(jax.random.split(jax.random.fold_in(key, 1), 1000))
    samples = np.clip(np.asarray(s.model.decode(params, z)), 0, 1)
    sharpness = quality.sharpness(samples) / quality.sharpness(x[:1000])
    figures = {
        f"{name}_bits_per_dim": results.figure(bits.mean(), "bits / dim", n=n),
        f"{name}_kl": results.figure(kl.mean(), "nats / image", n=n),
        f"{name}_sigma": results.figure(scale, "of the grey scale"),
        f"{name}_sharpness": results.figure(sharpness, "of the test images'", n=1000),
    }
    return s.c, figures, {"samples": samples[:16], "reconstructions": mean[:16], "test": x[:16]}


def main() -> None:
    parser = common.parser(__doc__)
    parser.add_argument("--workdir", required=True, help="a finished run with the optimal variance")
    parser.add_argument("--unit", required=True, help="the same with variance 1")
    parser.add_argument("--images", type=int, default=10_000, help="test images, from the first")
    parser.add_argument("--data_dir", default="", help="where the data is, if it moved")
    args = parser.parse_args()
    recorder = common.Recorder("sigma", args.out)
    configs = {}
    figures = {}
    rows = []
    for name, workdir in (("optimal", args.workdir), ("unit", args.unit)):
        c, more, pictures = measure(name, workdir, args.images, args.data_dir)
        configs[name] = config_lib.to_json(c)
        figures |= more
        rows.append((f"samples, {name} variance", pictures["samples"]))
        rows.append((f"reconstructions, {name} variance", pictures["reconstructions"]))
    common.strips(recorder.picture(), [*rows, ("test images", pictures["test"])])
    recorder.write(configs, figures)


if __name__ == "__main__":
    common.script(main)
