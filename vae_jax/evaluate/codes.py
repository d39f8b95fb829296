"""How many of its codes a model uses: the task ``codes`` of eval.py."""

import jax
import jax.numpy as jnp
import numpy as np

from vae_jax.data import evaluation
from vae_jax.distributions import example_keys
from vae_jax.evaluate import likelihood
from vae_jax.evaluate.run import Forward, Result
from vae_jax.evaluate.subject import Subject
from vae_jax.report.metrics import Metric, register
from vae_jax.train.step import stream

KEYS = ("code_size", "code_use", "code_perplexity")
POOLED = ("codebook_use", "codebook_perplexity")  # of a codebook that all tokens share
_MEANINGS = (
    Metric("code_size", "Codes", "", "", "Of one variable, or of one token.", form=","),
    Metric(
        "code_use",
        "… in use",
        "%",
        "higher",
        "Share of the codes that the test images take, mean over variables.",
    ),
    Metric(
        "code_perplexity",
        "… their perplexity",
        "",
        "higher",
        "exp of the entropy of the codes of the test images, mean over variables.",
        form=".1f",
    ),
    Metric(
        "codebook_use",
        "Codebook in use",
        "%",
        "higher",
        "Share of the codebook that any token of the test images takes.",
    ),
    Metric(
        "codebook_perplexity",
        "… its perplexity",
        "",
        "higher",
        "exp of the entropy of the codes of all tokens of the test images together.",
        form=".1f",
    ),
)
for _metric in _MEANINGS:
    register(_metric)


def usage(index_NxP: np.ndarray, size: int) -> tuple[float, float]:
    """(share of ``size`` codes that occur, perplexity) of P variables, the means over them."""
    shares = []
    perplexities = []
    for index_N in index_NxP.T:
        count = np.bincount(index_N, minlength=size)
        p = count[count > 0] / count.sum()
        shares.append((count > 0).mean())
        perplexities.append(np.exp(-(p * np.log(p)).sum()))
    return float(np.mean(shares)), float(np.mean(perplexities))


def code_use(subject: Subject, look: Forward) -> Result:
    """``codes``: size, use and perplexity of the codes of the test images, one draw of each.

    Those of a codebook, which all tokens share, also of all tokens together.
    """
    model = subject.model

    def posterior(params: dict, x: jax.Array) -> object:
        return model.encode(params, x, model.map_label(params, x))

    kept = []

    def keep(params: dict, x: jax.Array) -> None:
        kept.append(posterior(params, x))  # which may hold functions, so that it is no output

    jax.eval_shape(keep, subject.params, jax.ShapeDtypeStruct((1, *model.shape), jnp.float32))
    (q,) = kept
    if not hasattr(q, "indices"):
        reason = "z is not a code; want a run of posterior.name=categorical or fsq"
        return {}, dict.fromkeys(KEYS + POOLED, reason), {}
    to_x = evaluation.inputs(subject.config, subject.levels)
    key = stream(subject.config.seed, "codes")

    def program(params: dict, batch: dict) -> dict:
        q = posterior(params, to_x(batch))
        return {"index": q.indices(q.sample(example_keys(key, batch["id"])))}

    index = likelihood.over_split(subject, program, subject.data.test)["index"].astype(int)
    values = dict(zip(KEYS, (q.size, *usage(index, q.size)), strict=True))
    if not hasattr(q, "codebook"):
        return values, dict.fromkeys(POOLED, "each variable has codes of its own"), {}
    values |= dict(zip(POOLED, usage(index.reshape(-1, 1), q.size), strict=True))
    return values, {}, {}
