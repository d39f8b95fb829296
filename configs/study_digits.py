"""Methods x label budgets x seeds on scikit-learn's 8x8 digits: a few minutes on two CPU cores.

    python -m vae_jax.tools.study --config=configs/study_digits.py --workdir=runs/study_digits

MLP nets of one hidden layer of 256, latent codes of 16 numbers. Images in grey levels, but of M2
and its kin, whose p(x|y,z) is a Bernoulli: these see pixels of 0 and 1.

Figures, times and device: results/study_digits.json.
"""

import functools
from collections.abc import Callable

from ml_collections import ConfigDict

from configs import digits
from vae_jax import config
from vae_jax.tools.study import Method, Run, Study

STEPS = 3000


def base(steps: int = STEPS) -> ConfigDict:
    c = digits.get_config()
    c.steps = steps
    c.eval.every = max(20, steps // 2)
    c.log_every = max(20, steps // 2)
    c.encoder = config.call("encoder", "mlp", widths=(256,))
    c.decoder = config.call("decoder", "mlp", widths=(256,))
    c.optim.warmup = min(200, steps // 2)
    c.data.shift = 0
    return c


def cnn(labels: int, shift: int = 0, steps: int = STEPS) -> ConfigDict:
    """Encoder and classifier with cross-entropy only."""
    c = base(steps)
    c.data.shift = shift
    c.decoder = config.call("decoder", "none")
    c.classifier = config.call("classifier", "mlp")
    c.objective = config.call("objective", "supervised")
    c.batch = 8 if labels else 128  # of images whose labels nobody looks at: they cost nothing here
    c.data.labelled_batch = 64 if labels else 0
    return c


def vae(labels: int, beta: float = 1.0, steps: int = STEPS) -> ConfigDict:
    c = base(steps)
    c.classifier = config.call("classifier", "none")
    c.objective = config.call("objective", "elbo", beta=beta)
    return c


def joint(labels: int, steps: int = STEPS) -> ConfigDict:
    c = base(steps)
    c.data.labelled_batch = 64 if labels else 0
    c.classifier = config.call("classifier", "mlp")
    c.objective = config.call("objective", "joint", gamma=50.0)
    return c


def m2(labels: int, steps: int = STEPS) -> ConfigDict:
    c = base(steps)
    c.data.binarize = "threshold"
    c.likelihood = config.call("likelihood", "bernoulli")
    c.batch = 96
    c.data.labelled_batch = 64 if labels else 0
    c.classifier = config.call("classifier", "mlp")
    c.model = config.call("model", "m2")
    c.objective = config.call("objective", "m2", alpha=10.0, labelled=labels / 1437 or 1.0)
    return c


def m1m2(labels: int, steps: int = STEPS) -> ConfigDict:
    c = vae(labels, steps=steps)
    c.batch = 96
    c.data.labelled_batch = 64 if labels else 0
    c.classifier = config.call("classifier", "mlp", widths=(256,))
    c.model = config.call("model", "m1m2")
    c.objective = config.call("objective", "m2", alpha=10.0, labelled=labels / 1437 or 1.0)
    return c


def ccvae(labels: int, steps: int = STEPS) -> ConfigDict:
    c = joint(labels, steps)
    c.prior = config.call("prior", "labelled")
    c.classifier = config.call("classifier", "bayes")
    return c


def apart(labels: int, steps: int = STEPS) -> ConfigDict:
    c = m2(labels, steps)
    c.model = config.call("model", "per_class")
    c.objective = config.call("objective", "m2")
    return c


def study(steps: int = STEPS, **changes: object) -> Study:
    def sized(
        make: Callable[..., ConfigDict],
        **fields: object,
    ) -> Callable[[int], ConfigDict]:
        return functools.partial(make, steps=steps, **fields)

    runs = {
        "net": Run(sized(cnn)),
        "net_shifted": Run(sized(cnn, shift=1)),
        "random": Run(sized(vae), labels=False, steps=False),
        "autoencoder": Run(sized(vae, beta=0.0), labels=False),
        "m1": Run(sized(vae), labels=False),
        "joint": Run(sized(joint)),
        "ccvae": Run(sized(ccvae)),
        "m2": Run(sized(m2)),
        "m1m2": Run(sized(m1m2), begin="m1"),
        "apart": Run(sized(apart)),
    }
    methods = {
        "net": Method("supervised net", "net"),
        "net_shifted": Method("supervised net, images shifted", "net_shifted"),
        "pixels_knn": Method("pixels, kNN", "random", "pixels:knn"),
        "pixels_logistic": Method("pixels, logistic regression", "random", "pixels:logistic"),
        "random_logistic": Method("random encoder, logistic regression", "random", "code:logistic"),
        "autoencoder_logistic": Method(
            "autoencoder, logistic regression",
            "autoencoder",
            "code:logistic",
        ),
        "m1_logistic": Method("M1, logistic regression", "m1", "code:logistic"),
        "m1_svm": Method("M1, SVM", "m1", "code:svm"),
        "m1_knn": Method("M1, kNN", "m1", "code:knn"),
        "joint": Method("joint", "joint"),
        "ccvae": Method("CCVAE-style", "ccvae"),
        "m2": Method("M2", "m2"),
        "m1m2": Method("M1+M2", "m1m2"),
        "generative": Method("generative (Bayes' rule on M2)", "m2", "bayes"),
        "apart": Method("generative, nets of each class", "apart", "bayes", budgets=(0,)),
    }
    fields = {"budgets": (20, 100, 0), "seeds": (0, 1, 2), "detail": (100, 0), "iw_k": 50}
    return Study("digits", runs, methods, **(fields | changes))


def get_study() -> Study:
    return study()
