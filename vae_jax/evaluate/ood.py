"""Is this image of another kind than those of training? Scores, each higher for the stranger image.

The plain likelihood often says no: a VAE trained on garments gives digits *more* probability (Nalisnick et al.
2019, arXiv:1810.09136), since a likelihood rewards images that are simple. Each other score mends that its own way.
All but the last are in bits, so that lengths of codes can be subtracted from each other.
"""

import io
import math

import jax
import jax.numpy as jnp
import numpy as np
import optax

from vae_jax import distributions as densities
from vae_jax.data import evaluation
from vae_jax.evaluate import likelihood
from vae_jax.mesh import hosts
from vae_jax.mesh import rules as sharding
from vae_jax.train import program as compile_lib

BITS = 1 / math.log(2)  # a nat in bits
SCORES = ("elbo", "iw", "typicality", "regret", "complexity", "waic", "latent")
SAMPLES = 20  # K of the importance-weighted bound
STEPS, RATE = 50, 0.1  # of the inner optimisation of a likelihood regret


def auroc(inside_N, outside_M):
    """P(score of an outside image > that of an inside one), ties a half; leading axes broadcast.

    The Mann-Whitney U over N M: (Σ ranks of the outside − M(M+1)/2) / (N M).
    """
    from scipy.stats import rankdata

    n, m = np.shape(inside_N)[-1], np.shape(outside_M)[-1]
    ranks = rankdata(np.concatenate([inside_N, outside_M], -1), axis=-1)
    return (ranks[..., n:].sum(-1) - m * (m + 1) / 2) / (n * m)


def interval(inside_N, outside_M, resamples=1000, seed=0):
    """The 95 % interval of :func:`auroc` by the percentile bootstrap: both sets drawn anew, with replacement."""
    rng = np.random.default_rng(seed)
    found = [
        auroc(*(rng.choice(s, len(s)) for s in (inside_N, outside_M))) for _ in range(resamples)
    ]
    return tuple(float(q) for q in np.quantile(found, (0.025, 0.975)))


def png_bits(image_NxHxWxC):
    """Length in bits of each uint8 image as a PNG file (its header included: the same for all)."""
    from PIL import Image

    def size(image):
        file = io.BytesIO()
        Image.fromarray(image[..., 0] if image.shape[-1] == 1 else image).save(
            file, "PNG", optimize=True
        )
        return 8 * file.tell()

    return np.array([size(image) for image in image_NxHxWxC], np.float64)


def complexity(bits_N, image_NxHxWxC):
    """Input complexity: S(x) = −log2 p(x) − L(x), L the length of a PNG file of what the model saw.

    Serrà et al. 2020 (arXiv:1909.11480), eq. 1: a likelihood ratio against a compressor that knows no data set.
    ``bits`` is −log2 p(x); of a density it is not a length, and S has no meaning.
    """
    return bits_N - png_bits(image_NxHxWxC)


def typicality(bits_N, usual_M):
    """| −log p(x) − H |, H the mean of −log p over other images of training's kind: too probable is strange, too.

    Nalisnick et al. 2019 (arXiv:1906.02994), eq. 5, for one image.
    """
    return np.abs(bits_N - usual_M.mean())


def waic(log_px_RxN):
    """−WAIC = Var_θ log p(x|θ) − E_θ log p(x|θ) over R models, from bounds in bits.

    Choi et al. 2018 (arXiv:1810.01392), eq. 2, the formula as it is published: a variance in bits² beside bits.
    """
    return log_px_RxN.var(0) - log_px_RxN.mean(0)


class Gaussians:
    """Latent density: the squared Mahalanobis distance to the nearest class, one covariance for all.

    .. math:: \\min_y\\, (\\mu(x) - m_y)^T \\Sigma^{-1} (\\mu(x) - m_y)

    Lee et al. 2018 (arXiv:1807.03888), eqs. 1-2, on the latent means of training images; without labels all are of
    one class. Σ gets 1e-6 of its mean variance, for dimensions that collapsed.
    """

    def __init__(self, mu_NxD, label_N=None):
        mu = np.asarray(mu_NxD, np.float64)
        label = np.zeros(len(mu), int) if label_N is None else label_N
        self.mean_YxD = np.stack([mu[label == y].mean(0) for y in np.unique(label)])
        rest = mu - self.mean_YxD[np.unique(label, return_inverse=True)[1]]
        cov = rest.T @ rest / len(mu)
        cov += 1e-6 * np.trace(cov) / len(cov) * np.eye(len(cov)) + 1e-30 * np.eye(len(cov))
        self.whiten_DxD = np.linalg.inv(np.linalg.cholesky(cov)).T

    def __call__(self, mu_NxD, xp=np):
        """Shape N; ``xp`` = jnp within a program."""
        z = (mu_NxD - self.mean_YxD[0]) @ self.whiten_DxD
        means = (self.mean_YxD - self.mean_YxD[0]) @ self.whiten_DxD
        return xp.min(xp.sum((z[:, None] - means) ** 2, -1), 1)


def without(c, model, params, ensemble):
    """{score: why it cannot be had} of a model, ``ensemble`` being the stacked parameters of several or None."""
    if model.decode is None:
        return dict.fromkeys(SCORES[:-1], "the model has no decoder")
    why, kinds = {}, []

    def look(params, x):
        return kinds.append(type(model.encode(params, x, model.map_label(params, x))))

    jax.eval_shape(look, params, jnp.zeros((1, *model.shape)))
    if kinds != [densities.Normal]:
        why["regret"] = "q(z|x) is no diagonal Gaussian"
    if not model.likelihood.discrete:
        why["complexity"] = f"{c.likelihood.name} is a density, whose bits are no length of a code"
    if ensemble is None:
        why["waic"] = (
            "there is no ensemble; want a replica of a run with --config.replicas.seed=0,1,2"
        )
    return why


def scores(c, model, params, split, levels, mesh, key, *, usual, ensemble, but):
    """{score: N} of a split, all of :data:`SCORES` that a decoder gives, ``but`` some.

    ``usual``: −log2 p(x) of other images of training's kind, None where these are the ones asked for.
    """
    rows = likelihood.log_likelihood(c, model, params, split, levels, mesh, key, k=SAMPLES)
    bits = -rows["iw"] * BITS
    found = {"elbo": -rows["elbo"] * BITS, "iw": bits}
    if usual is None:
        return found
    found["typicality"] = typicality(bits, usual)
    if "complexity" not in but:
        to_x = compile_lib.simple(evaluation.inputs(c, levels))
        x = to_x({"image": jnp.asarray(split.image), "id": jnp.arange(len(split.image))})
        found["complexity"] = complexity(bits, np.rint(255 * np.asarray(x)).astype(np.uint8))
    if "regret" not in but:
        found["regret"] = BITS * regret(c, model, params, split, levels, mesh, key, steps=STEPS)
    if "waic" not in but:
        found["waic"] = waic(BITS * ensemble_bound(c, model, ensemble, split, levels, mesh, key))
    return found


def regret(c, model, params, split, levels, mesh, key, *, steps, rate=RATE, judges=16):
    r"""Likelihood regret, in nats, shape N: what an encoder of its own would win for each image.

    .. math:: R(x) = \max_{\mu, \sigma} L(x; \theta, \mu, \sigma) - L(x; \theta, \mu_\phi(x), \sigma_\phi(x))

    L is the ELBO. Xiao et al. 2020 (arXiv:2003.02977), eq. 6, with q's parameters themselves optimised: Adam from
    the encoder's, its rate going to 0, which the noise of single draws needs. An image's parameters meet only its own
    bound, so the gradient of the batch's sum is each image's: N optimisations run side by side. Each step has fresh
    noise; both bounds are means over the same ``judges`` draws, which the optimisation has not seen. Wants q to be a
    ``densities.Normal``.
    """
    to_x, adam = evaluation.inputs(c, levels), optax.adam(optax.cosine_decay_schedule(rate, steps))

    def bound(params, x, y, q, ids, number, samples):
        key_B = jax.vmap(lambda i: jax.random.fold_in(jax.random.fold_in(key, i), number))(ids)
        eps_KxBxD = jax.vmap(lambda k: jax.random.normal(k, (samples, model.latent)), out_axes=1)(
            key_B
        )
        z = q.mu + jnp.exp(0.5 * q.logvar) * eps_KxBxD
        p = model.prior(params)
        kl = densities.kl(q, p)
        kl = (q.log_prob(z) - p.log_prob(z)).mean(0) if kl is None else kl
        log_px = model.log_joint(params, x, z, y) - p.log_prob(z)
        return log_px.mean(0) - kl

    def begin(params, batch):
        x = to_x(batch)
        y = model.map_label(params, x)
        q = model.encode(params, x, y)
        return x, y, q, adam.init(q)

    def update(params, batch, x, y, q, state, number):
        def loss(q):
            return -bound(params, x, y, q, batch["id"], number, 1).sum()

        change, state = adam.update(jax.grad(loss)(q), state)
        return optax.apply_updates(q, change), state

    def judge(params, batch, x, y, first, last):
        a, b = (bound(params, x, y, q, batch["id"], steps, judges) for q in (first, last))
        return {"regret": b - a}

    begin, update, judge = (compile_lib.over_batches(f, mesh) for f in (begin, update, judge))
    rows = []
    for batch, real in evaluation.batches(split, min(c.eval.batch, 200), mesh):
        batch = hosts.place(batch, sharding.over_batch(mesh))
        x, y, first, state = begin(params, batch)
        q = first
        for i in range(
            steps
        ):  # not a loop on the device: XLA's convolutions are slow in one on CPU
            q, state = update(params, batch, x, y, q, state, i)
        rows.append((judge(params, batch, x, y, first, q), real))
    return likelihood.gather(rows)["regret"]


def ensemble_bound(c, model, params_R, split, levels, mesh, key, k=SAMPLES):
    """IW-K bounds in nats, RxN, of R models whose parameters are stacked, by ``vmap`` over them."""
    to_x = evaluation.inputs(c, levels)

    def program(params_R, batch):
        x = to_x(batch)

        def draws(p):
            return likelihood.draws(model, p, x, batch["id"], key, 0, k).log_w

        log_w_RxBxK = jax.vmap(draws)(params_R)
        return {"iw": (jax.nn.logsumexp(log_w_RxBxK, axis=-1) - math.log(k)).T}

    run = compile_lib.over_batches(program, mesh)
    rows = [
        (run(params_R, batch), real)
        for batch, real in evaluation.batches(split, min(c.eval.batch, 100), mesh)
    ]
    return likelihood.gather(rows)["iw"].T
