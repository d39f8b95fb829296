"""Scores of out-of-distribution images, each higher for the OOD image.

The plain likelihood often fails: a VAE trained on garments gives digits *more* probability
(Nalisnick et al. 2019, arXiv:1810.09136), since a likelihood rewards images that are simple. Each
other score mends that its own way. All but the last are in bits, so that lengths of codes can be
subtracted from each other.
"""

import dataclasses
import io
import math
from collections.abc import Iterable
from types import ModuleType

import jax
import jax.numpy as jnp
import numpy as np
import optax

from vae_jax import distributions as densities
from vae_jax.data import Split, evaluation
from vae_jax.evaluate import likelihood
from vae_jax.evaluate.subject import Subject
from vae_jax.mesh import hosts
from vae_jax.mesh import rules as sharding
from vae_jax.train import program as compile_lib

BITS = 1 / math.log(2)  # a nat in bits
SCORES = ("elbo", "iw", "typicality", "regret", "complexity", "waic", "latent")
SAMPLES = 20  # K of the importance-weighted bound
# Of the inner optimisation of a likelihood regret. 50 steps came to 1.77 nats where 200 found 2.66.
STEPS = 200
RATE = 0.1


def auroc(inside_N: np.ndarray, outside_M: np.ndarray) -> np.ndarray:
    """P(score of an outside image > that of an inside one), ties a half; leading axes broadcast.

    The Mann-Whitney U over N M: (Σ ranks of the outside − M(M+1)/2) / (N M).
    """
    from scipy.stats import rankdata

    n = np.shape(inside_N)[-1]
    m = np.shape(outside_M)[-1]
    ranks = rankdata(np.concatenate([inside_N, outside_M], -1), axis=-1)
    return (ranks[..., n:].sum(-1) - m * (m + 1) / 2) / (n * m)


def interval(
    inside_N: np.ndarray, outside_M: np.ndarray, resamples: int = 1000, seed: int = 0
) -> tuple[float, float]:
    """The 95 % interval of :func:`auroc` by the percentile bootstrap over both sets."""
    rng = np.random.default_rng(seed)
    values = []
    for _ in range(resamples):
        inside = rng.choice(inside_N, len(inside_N))
        values.append(auroc(inside, rng.choice(outside_M, len(outside_M))))
    low, high = np.quantile(values, (0.025, 0.975))
    return float(low), float(high)


def png_bits(image_NxHxWxC: np.ndarray) -> np.ndarray:
    """Length in bits of each uint8 image as a PNG file (its header included: the same for all)."""
    from PIL import Image

    def size(image: np.ndarray) -> int:
        file = io.BytesIO()
        pixels = image[..., 0] if image.shape[-1] == 1 else image
        Image.fromarray(pixels).save(file, "PNG", optimize=True)
        return 8 * file.tell()

    return np.array([size(image) for image in image_NxHxWxC], np.float64)


def complexity(bits_N: np.ndarray, image_NxHxWxC: np.ndarray) -> np.ndarray:
    """Input complexity: S(x) = −log2 p(x) − L(x), L the length of x as a PNG file.

    Serrà et al. 2020 (arXiv:1909.11480), eq. 1: a likelihood ratio against a compressor that knows
    no data set. ``bits`` is −log2 p(x); of a density it is no length, and S has no meaning.
    """
    return bits_N - png_bits(image_NxHxWxC)


def typicality(bits_N: np.ndarray, usual_M: np.ndarray) -> np.ndarray:
    """| −log p(x) − H |, H the mean of −log p over validation: too probable is unusual, too.

    Nalisnick et al. 2019 (arXiv:1906.02994), eq. 5, for one image.
    """
    return np.abs(bits_N - usual_M.mean())


def waic(log_px_RxN: np.ndarray) -> np.ndarray:
    """−WAIC = Var_θ log p(x|θ) − E_θ log p(x|θ) over R models, from bounds in bits.

    Choi et al. 2018 (arXiv:1810.01392), eq. 2, the formula as it is published: a variance in bits²
    beside bits.
    """
    return log_px_RxN.var(0) - log_px_RxN.mean(0)


class Gaussians:
    """Latent density: the squared Mahalanobis distance to the nearest class, one covariance.

    .. math:: \\min_y\\, (\\mu(x) - m_y)^T \\Sigma^{-1} (\\mu(x) - m_y)

    Lee et al. 2018 (arXiv:1807.03888), eqs. 1-2, on the latent means of training images; without
    labels all are of one class. Σ gets 1e-6 of its mean variance, for dimensions that collapsed.
    """

    def __init__(self, mu_NxD: np.ndarray, label_N: np.ndarray | None = None):
        mu = np.asarray(mu_NxD, np.float64)
        label = np.zeros(len(mu), int) if label_N is None else label_N
        classes, class_N = np.unique(label, return_inverse=True)
        self.mean_YxD = np.stack([mu[label == y].mean(0) for y in classes])
        rest = mu - self.mean_YxD[class_N]
        cov = rest.T @ rest / len(mu)
        cov += (1e-6 * np.trace(cov) / len(cov) + 1e-30) * np.eye(len(cov))
        self.whiten_DxD = np.linalg.inv(np.linalg.cholesky(cov)).T

    def __call__(self, mu_NxD: jax.Array, xp: ModuleType = np) -> jax.Array:
        """Shape N; ``xp`` = jnp within a program."""
        z = (mu_NxD - self.mean_YxD[0]) @ self.whiten_DxD
        means = (self.mean_YxD - self.mean_YxD[0]) @ self.whiten_DxD
        return xp.min(xp.sum((z[:, None] - means) ** 2, -1), 1)


def without(subject: Subject, ensemble: dict | None) -> dict[str, str]:
    """{score: why it is missing}; ``ensemble``: the stacked parameters of several seeds or None."""
    model = subject.model
    if model.decode is None:
        return dict.fromkeys(SCORES[:-1], "the model has no decoder")
    why = {}
    kinds = []

    def add_kind(params: dict, x: jax.Array) -> None:
        kinds.append(type(model.encode(params, x, model.map_label(params, x))))

    jax.eval_shape(add_kind, subject.params, jnp.zeros((1, *model.shape)))
    if kinds != [densities.Normal]:
        why["regret"] = "q(z|x) is no diagonal Gaussian"
    if not model.likelihood.discrete:
        name = subject.config.likelihood.name
        why["complexity"] = f"{name} is a density, whose bits are no length of a code"
    if ensemble is None:
        advice = "want a replica of a run with --config.replicas.seed=0,1,2"
        why["waic"] = f"there is no ensemble; {advice}"
    return why


def scores(
    subject: Subject,
    split: Split,
    key: jax.Array,
    *,
    usual: np.ndarray | None,
    ensemble: dict | None,
    but: Iterable[str],
) -> dict[str, np.ndarray]:
    """{score: N} of a split, all of :data:`SCORES` that a decoder gives, ``but`` some.

    ``usual``: −log2 p(x) of validation images; None asks for these bits alone. Beside ``regret``
    there is ``regret_late``, in nats: see :func:`regret`.
    """
    rows = likelihood.log_likelihood(subject, split, key, k=SAMPLES)
    bits = -rows["iw"] * BITS
    out = {"elbo": -rows["elbo"] * BITS, "iw": bits}
    if usual is None:
        return out
    out["typicality"] = typicality(bits, usual)
    if "complexity" not in but:
        to_x = compile_lib.simple(evaluation.inputs(subject.config, subject.levels))
        x = to_x({"image": jnp.asarray(split.image), "id": jnp.arange(len(split.image))})
        out["complexity"] = complexity(bits, np.rint(255 * np.asarray(x)).astype(np.uint8))
    if "regret" not in but:
        rows = regret(subject, split, key, steps=STEPS)
        out["regret"] = BITS * rows["regret"]
        out["regret_late"] = rows["late"]
    if "waic" not in but:
        out["waic"] = waic(BITS * ensemble_bound(subject, ensemble, split, key))
    return out


def regret(
    subject: Subject,
    split: Split,
    key: jax.Array,
    *,
    steps: int,
    rate: float = RATE,
    judges: int = 16,
) -> dict[str, np.ndarray]:
    r"""Likelihood regret, in nats, shape N: what an encoder of its own would win for each image.

    .. math:: R(x) = \max_{\mu, \sigma} L(x; \theta, \mu, \sigma)
              - L(x; \theta, \mu_\phi(x), \sigma_\phi(x))

    L is the ELBO. Xiao et al. 2020 (arXiv:2003.02977), eq. 6, with q's parameters themselves
    optimised: Adam from the encoder's, its rate going to 0, which the noise of single draws needs.
    An image's parameters meet only its own bound, so the gradient of the batch's sum is each
    image's: N optimisations run side by side. Each step has fresh noise; all bounds are means over
    the same ``judges`` draws, which the optimisation has not used. The encoder's own q is among the
    candidates, so R >= 0. Wants q to be a ``densities.Normal``.

    ``late`` is what the last quarter of the steps won: where its mean is not small beside R's, more
    steps would win more.
    """
    begin, update, judge = _regret_programs(subject, key, steps, rate, judges)
    rows = []
    size = min(subject.config.eval.batch, 200)
    for batch, real in evaluation.batches(split, size, subject.mesh):
        batch = hosts.place(batch, sharding.over_batch(subject.mesh))
        x, y, first, state = begin(subject.params, batch)
        q = first
        middle = first
        for i in range(steps):  # no loop on the device: XLA's convolutions are slow in it on CPU
            if i == 3 * steps // 4:
                middle = q
            q, state = update(subject.params, batch, x, y, q, state, i)
        rows.append((judge(subject.params, batch, x, y, (first, middle, q)), real))
    return likelihood.gather(rows)


def _regret_programs(
    subject: Subject, key: jax.Array, steps: int, rate: float, judges: int
) -> tuple:
    """The programs (begin, one step, judge) of :func:`regret`."""
    model = subject.model
    to_x = evaluation.inputs(subject.config, subject.levels)
    adam = optax.adam(optax.cosine_decay_schedule(rate, steps))

    def noise(id_: jax.Array, number: int, samples: int) -> jax.Array:
        one = jax.random.fold_in(jax.random.fold_in(key, id_), number)
        return jax.random.normal(one, (samples, model.latent))

    def bound(
        params: dict, x: jax.Array, y: jax.Array | None, q: densities.Normal, eps_KxBxD: jax.Array
    ) -> jax.Array:
        z = q.mu + jnp.exp(0.5 * q.logvar) * eps_KxBxD
        p = model.prior(params)
        kl = densities.kl(q, p)
        if kl is None:
            kl = (q.log_prob(z) - p.log_prob(z)).mean(0)
        log_px = model.log_joint(params, x, z, y) - p.log_prob(z)
        return log_px.mean(0) - kl

    def draws(batch: dict, number: int, samples: int) -> jax.Array:
        return jax.vmap(lambda i: noise(i, number, samples), out_axes=1)(batch["id"])

    def begin(params: dict, batch: dict) -> tuple:
        x = to_x(batch)
        y = model.map_label(params, x)
        q = model.encode(params, x, y)
        return x, y, q, adam.init(q)

    def update(
        params: dict,
        batch: dict,
        x: jax.Array,
        y: jax.Array | None,
        q: densities.Normal,
        state: optax.OptState,
        number: int,
    ) -> tuple:
        eps = draws(batch, number, 1)

        def loss(q: densities.Normal) -> jax.Array:
            return -bound(params, x, y, q, eps).sum()

        change, state = adam.update(jax.grad(loss)(q), state)
        return optax.apply_updates(q, change), state

    def judge(params: dict, batch: dict, x: jax.Array, y: jax.Array | None, qs: tuple) -> dict:
        eps = draws(batch, steps, judges)
        first, middle, last = (bound(params, x, y, q, eps) for q in qs)
        return {"regret": jnp.maximum(last - first, 0), "late": last - middle}

    return tuple(compile_lib.over_batches(f, subject.mesh) for f in (begin, update, judge))


def ensemble_bound(
    subject: Subject, params_R: dict, split: Split, key: jax.Array, k: int = SAMPLES
) -> np.ndarray:
    """IW-K bounds in nats, RxN, of R models whose parameters are stacked."""
    to_x = evaluation.inputs(subject.config, subject.levels)

    def program(params_R: dict, batch: dict) -> dict:
        x = to_x(batch)

        def draws(params: dict) -> jax.Array:
            d = likelihood.draws(subject.model, params, x, batch["id"], key, 0, k)
            return d.log_w

        log_w_RxBxK = jax.vmap(draws)(params_R)
        return {"iw": (jax.nn.logsumexp(log_w_RxBxK, axis=-1) - math.log(k)).T}

    ensemble = dataclasses.replace(subject, params=params_R)
    size = min(subject.config.eval.batch, 100)
    return likelihood.over_split(ensemble, program, split, size)["iw"].T
