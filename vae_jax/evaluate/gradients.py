"""How noisy each gradient estimator is, on a trained run.

    python -m vae_jax.evaluate.gradients --workdir=runs/mnist_dynamic --samples=1,10,100 --repeats=200

Writes gradients.json and gradients.png into the run's folder, and prints the table. For each estimator and
number of samples K the gradient of the IWAE loss on one fixed batch of test images is drawn R times:

.. math:: \\mathrm{SNR} = |E\\,g| / \\mathrm{sd}(g)

parameter by parameter; the median over the parameters of the inference net (encoder, posterior) and of the
generative net (decoder, prior) is shown, beside the mean variance. Rainforth et al. 2018
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
from vae_jax.objectives.multisample import INFERENCE, iwae
from vae_jax.train import checkpoint, step
from vae_jax.train import program as compile_lib
from vae_jax.train import run as workdir

ESTIMATORS = {
    "pathwise": "o-",
    "stl": "s--",
    "dreg": "^:",
}  # and the line of each: all show where they coincide


def probe(model, params, x_BxHxWxC, key, *, estimator, samples, repeats):
    """{'inference': {'variance', 'snr'}, 'generative': {...}} of the mean gradient over one batch."""

    def gradient(params, x, key):
        keys = jax.random.split(key, len(x))

        def loss(params):
            terms = iwae(model, params, {"image": x}, keys, samples=samples, estimator=estimator)
            return terms.loss.mean()

        return jax.grad(loss)(params)

    def add(sums, squares, first, params, x, key):
        # Moments about the first gradient: the variance of one that hardly moves is not lost to rounding.
        g = jax.tree.map(jnp.subtract, gradient(params, x, key), first)
        return jax.tree.map(jnp.add, sums, g), jax.tree.map(lambda s, g: s + g**2, squares, g)

    first = compile_lib.simple(gradient)(params, x_BxHxWxC, jax.random.fold_in(key, repeats))
    add, sums = compile_lib.simple(add), jax.tree.map(jnp.zeros_like, params)
    squares = sums
    for i in range(repeats):
        sums, squares = add(sums, squares, first, params, x_BxHxWxC, jax.random.fold_in(key, i))
    found = {}
    for side in ("inference", "generative"):
        parts = [p for p in ("encoder", "posterior", "decoder", "prior") if p in params]
        parts = [p for p in parts if (p in INFERENCE) == (side == "inference")]
        shift, total, square = (
            _flat({p: tree[p] for p in parts}) for tree in (first, sums, squares)
        )
        variance = (square - total**2 / repeats) / (repeats - 1)
        moving = variance > 0  # a dead unit has no gradient, hence no ratio
        ratio = np.abs(shift + total / repeats)[moving] / np.sqrt(variance[moving])
        found[side] = {
            "variance": float(variance.mean()),
            "snr": float(np.median(ratio)) if len(ratio) else None,
        }
    return found


def _flat(tree):
    return np.concatenate(
        [np.ravel(np.asarray(leaf, np.float64)) for leaf in jax.tree.leaves(tree)]
    )


def picture(rows, path):
    """SNR against K, one line for each estimator, one panel for each net."""
    from matplotlib import ticker
    from matplotlib.figure import Figure

    figure = Figure(figsize=(9, 3.6), layout="constrained")
    for ax, side in zip(figure.subplots(1, 2), ("inference", "generative"), strict=True):
        for estimator, style in ESTIMATORS.items():
            mine = [r for r in rows if r["estimator"] == estimator]
            ax.plot(
                [r["samples"] for r in mine], [r[side]["snr"] for r in mine], style, label=estimator
            )
        ax.set(xscale="log", yscale="log", xlabel="samples K", title=f"{side} net")
        counts = sorted({r["samples"] for r in rows})
        ax.set_xticks(counts, counts)
        ax.xaxis.set_minor_locator(ticker.NullLocator())
        for which in (ax.yaxis.set_major_formatter, ax.yaxis.set_minor_formatter):
            which(ticker.FormatStrFormatter("%g"))
        ax.grid(alpha=0.3)
    figure.axes[0].set_ylabel("signal-to-noise ratio (median)")
    figure.axes[0].legend()
    with epath.Path(path).open("wb") as file:
        figure.savefig(file, dpi=150)


def define(values):
    flags.DEFINE_string("workdir", None, "folder of the run", flag_values=values)
    flags.DEFINE_string("checkpoint", "best", "best or latest", flag_values=values)
    flags.DEFINE_list("samples", ["1", "10", "100"], "numbers of samples K", flag_values=values)
    flags.DEFINE_integer(
        "repeats", 200, "gradients for each row", lower_bound=2, flag_values=values
    )
    flags.DEFINE_integer("batch", 64, "test images", lower_bound=1, flag_values=values)
    flags.DEFINE_string("data_dir", "", "where TFDS data is, if it moved", flag_values=values)


def run(argv):
    values, _ = flags_lib.parse(argv, define)
    if not values.workdir:
        raise UserError("workdir: want --workdir=FOLDER")
    if not all(k.isdigit() and int(k) > 0 for k in values.samples):
        raise UserError(
            f"samples={','.join(values.samples)}: want whole numbers > 0, such as 1,10,100"
        )
    s, state, _ = workdir.restore(values.workdir, values.checkpoint, data_dir=values.data_dir)
    if s.model.decode is None:
        raise UserError(
            "decoder.name=none: there is no bound to differentiate; want a run with a decoder"
        )
    n = min(values.batch, len(s.dataset.test.image))
    batch = {"image": jnp.asarray(s.dataset.test.image[:n]), "id": jnp.arange(n)}
    x = evaluation.inputs(s.c, s.dataset.levels)(batch)
    params, key, rows = step.averaged(state), step.stream(s.c.seed, "gradients"), []
    print(
        f"{'estimator':<10}{'K':>6}{'inference: variance':>22}{'SNR':>10}{'generative: variance':>24}{'SNR':>10}"
    )
    for samples in map(int, values.samples):
        for estimator in ESTIMATORS:
            found = probe(
                s.model,
                params,
                x,
                key,
                estimator=estimator,
                samples=samples,
                repeats=values.repeats,
            )
            rows.append(
                {"estimator": estimator, "samples": samples, "repeats": values.repeats, "batch": n}
                | found
            )
            i, g = found["inference"], found["generative"]
            print(
                f"{estimator:<10}{samples:>6}{i['variance']:>22.4g}{i['snr']:>10.4g}{g['variance']:>24.4g}{g['snr']:>10.4g}"
            )
    checkpoint.write_json(os.path.join(values.workdir, "gradients.json"), rows)
    picture(rows, os.path.join(values.workdir, "gradients.png"))
    return 0


if __name__ == "__main__":
    flags_lib.main(run)
