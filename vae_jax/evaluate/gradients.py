"""How noisy each gradient estimator is, on a trained run.

    python -m vae_jax.evaluate.gradients --workdir=runs/mnist_dynamic --samples=1,10,100 \\
        --repeats=200

Writes gradients.json and gradients.png into the run's folder, and prints the table. For each
estimator and number of samples K the gradient of the IWAE loss on one fixed batch of test images is
drawn R times:

.. math:: \\mathrm{SNR} = |E\\,g| / \\mathrm{sd}(g)

parameter by parameter; the median over the parameters of the inference net (encoder, posterior) and
of the generative net (decoder, prior) stands beside the mean variance. Rainforth et al. 2018
(arXiv:1802.04537), eq. 4; Tucker et al. 2019 (arXiv:1810.04152), figure 2.
"""

import os

import jax
import jax.numpy as jnp
import numpy as np
from absl import flags
from etils import epath

from vae_jax import cli as flags_lib
from vae_jax.config import UserError
from vae_jax.data import evaluation
from vae_jax.models import Model
from vae_jax.objectives.multisample import INFERENCE, iwae
from vae_jax.train import checkpoint, step
from vae_jax.train import program as compile_lib
from vae_jax.train import run as workdir

# The line of each estimator in the picture: all show where they coincide.
ESTIMATORS = {"pathwise": "o-", "stl": "s--", "dreg": "^:"}


def probe(
    model: Model,
    params: dict,
    x_BxHxWxC: jax.Array,
    key: jax.Array,
    *,
    estimator: str,
    samples: int,
    repeats: int,
) -> dict[str, dict]:
    """{'inference': {'variance', 'snr'}, 'generative': {...}} of one batch's mean gradient."""

    def gradient(params: dict, x: jax.Array, key: jax.Array) -> dict:
        keys = jax.random.split(key, len(x))

        def loss(params: dict) -> jax.Array:
            terms = iwae(model, params, {"image": x}, keys, samples=samples, estimator=estimator)
            return terms.loss.mean()

        return jax.grad(loss)(params)

    @compile_lib.simple
    def add(moments: tuple, first: dict, params: dict, x: jax.Array, key: jax.Array) -> tuple:
        # Moments about the first gradient: a small variance is not lost to rounding.
        g = jax.tree.map(jnp.subtract, gradient(params, x, key), first)
        sums = jax.tree.map(jnp.add, moments[0], g)
        return sums, jax.tree.map(lambda s, g: s + g**2, moments[1], g)

    first = compile_lib.simple(gradient)(params, x_BxHxWxC, jax.random.fold_in(key, repeats))
    zeros = jax.tree.map(jnp.zeros_like, params)
    moments = (zeros, zeros)
    for i in range(repeats):
        moments = add(moments, first, params, x_BxHxWxC, jax.random.fold_in(key, i))
    return {
        "inference": _statistics(first, moments, repeats, set(INFERENCE)),
        "generative": _statistics(first, moments, repeats, set(PARTS) - set(INFERENCE)),
    }


PARTS = ("encoder", "posterior", "decoder", "prior")


def _statistics(first: dict, moments: tuple[dict, dict], repeats: int, parts: set[str]) -> dict:
    """Mean variance and median signal-to-noise ratio over the parameters of these parts."""
    names = [name for name in PARTS if name in parts and name in first]
    shift, total, square = (_flat(tree, names) for tree in (first, *moments))
    variance = (square - total**2 / repeats) / (repeats - 1)
    moving = variance > 0  # a dead unit has no gradient, hence no ratio
    ratio = np.abs(shift + total / repeats)[moving] / np.sqrt(variance[moving])
    snr = float(np.median(ratio)) if len(ratio) else None
    return {"variance": float(variance.mean()), "snr": snr}


def _flat(tree: dict, names: list[str]) -> np.ndarray:
    leaves = jax.tree.leaves({name: tree[name] for name in names})
    return np.concatenate([np.ravel(np.asarray(leaf, np.float64)) for leaf in leaves])


def picture(rows: list[dict], path: str) -> None:
    """SNR against K, one line for each estimator, one panel for each net."""
    from matplotlib import ticker
    from matplotlib.figure import Figure

    figure = Figure(figsize=(9, 3.6), layout="constrained")
    counts = sorted({row["samples"] for row in rows})
    for ax, side in zip(figure.subplots(1, 2), ("inference", "generative"), strict=True):
        for estimator, style in ESTIMATORS.items():
            mine = [row for row in rows if row["estimator"] == estimator]
            samples = [row["samples"] for row in mine]
            ax.plot(samples, [row[side]["snr"] for row in mine], style, label=estimator)
        ax.set(xscale="log", yscale="log", xlabel="samples K", title=f"{side} net")
        ax.set_xticks(counts, counts)
        ax.xaxis.set_minor_locator(ticker.NullLocator())
        ax.yaxis.set_major_formatter(ticker.FormatStrFormatter("%g"))
        ax.yaxis.set_minor_formatter(ticker.FormatStrFormatter("%g"))
        ax.grid(alpha=0.3)
    figure.axes[0].set_ylabel("signal-to-noise ratio (median)")
    figure.axes[0].legend()
    with epath.Path(path).open("wb") as file:
        figure.savefig(file, dpi=150)


def define(values: flags.FlagValues) -> None:
    """Declare the flags of this script."""
    flags.DEFINE_string("workdir", None, "folder of the run", flag_values=values)
    flags.DEFINE_string("checkpoint", "best", "best or latest", flag_values=values)
    flags.DEFINE_list("samples", ["1", "10", "100"], "numbers of samples K", flag_values=values)
    flags.DEFINE_integer(
        "repeats", 200, "gradients for each row", lower_bound=2, flag_values=values
    )
    flags.DEFINE_integer("batch", 64, "test images", lower_bound=1, flag_values=values)
    flags.DEFINE_string("data_dir", "", "where TFDS data is, if it moved", flag_values=values)


def run(argv: list[str]) -> int:
    """Measure the gradients of the run that the flags name; the exit code."""
    values = flags_lib.parse_fixed(argv, define)
    if not values.workdir:
        raise UserError("workdir: want --workdir=FOLDER")
    if not values.samples or not all(k.isdecimal() and int(k) > 0 for k in values.samples):
        said = ",".join(values.samples)
        raise UserError(f"samples={said}: want whole numbers > 0, such as 1,10,100")
    s, state, _ = workdir.restore(values.workdir, values.checkpoint, data_dir=values.data_dir)
    if s.model.decode is None:
        raise UserError(
            "decoder.name=none: there is no bound to differentiate; want a run with a decoder"
        )
    n = min(values.batch, len(s.dataset.test.image))
    batch = {"image": jnp.asarray(s.dataset.test.image[:n]), "id": jnp.arange(n)}
    x = evaluation.inputs(s.c, s.dataset.levels)(batch)
    params = step.averaged(state)
    key = step.stream(s.c.seed, "gradients")
    rows = []
    print(
        f"{'estimator':<10}{'K':>6}{'inference: variance':>22}{'SNR':>10}"
        f"{'generative: variance':>24}{'SNR':>10}"
    )
    for samples in map(int, values.samples):
        for estimator in ESTIMATORS:
            options = {"estimator": estimator, "samples": samples, "repeats": values.repeats}
            sides = probe(s.model, params, x, key, **options)
            rows.append(options | {"batch": n} | sides)
            i = sides["inference"]
            g = sides["generative"]
            print(
                f"{estimator:<10}{samples:>6}{i['variance']:>22.4g}{i['snr']:>10.4g}"
                f"{g['variance']:>24.4g}{g['snr']:>10.4g}"
            )
    checkpoint.write_json(os.path.join(values.workdir, "gradients.json"), rows)
    picture(rows, os.path.join(values.workdir, "gradients.png"))
    return 0


if __name__ == "__main__":
    flags_lib.main(run)
