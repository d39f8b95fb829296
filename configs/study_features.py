"""What pretraining without labels is worth on scikit-learn's digits: none, a VAE, a masked
autoencoder and SimCLR, of one encoder and as many steps, fine-tuned or frozen.

    python -m vae_jax.tools.study --config=configs/study_features.py --workdir=runs/study_features

*Fine-tuned*: a classifier begins with the pretrained encoder and learns all of it from the labels;
*from scratch* it begins anew. *Frozen*: a logistic regression on the code. Everything else is that
of configs/study_digits.py. ``study`` makes the same table of other nets and data:
configs/study_features_mnist.py.

Figures, times and device: results/study_features.json.
"""

from collections.abc import Callable

from ml_collections import ConfigDict

from configs import study_digits
from vae_jax import config
from vae_jax.tools.study import Method, Run, Study

STEPS = 2000  # of pretraining
TITLES = {"vae": "VAE", "masked": "masked autoencoder", "contrastive": "SimCLR"}
Make = Callable[[int], ConfigDict]  # labels (0: all) → config


def masked(c: ConfigDict, patch: int) -> ConfigDict:
    """The config of a VAE as a masked autoencoder of the same nets."""
    c.objective = config.call("objective", "masked", patch=patch)
    return c


def contrastive(c: ConfigDict) -> ConfigDict:
    """The config of a VAE as SimCLR of the same encoder."""
    c.decoder = config.call("decoder", "none")
    c.objective = config.call("objective", "contrastive")
    return c


def study(title: str, pretraining: dict[str, Make], tuning: Make, **changes: object) -> Study:
    """The table: every kind of pretraining, tuned and frozen, beside an encoder without any."""
    runs = {
        "scratch": Run(tuning),
        "random": Run(pretraining["vae"], labels=False, steps=False),
    }
    methods = {
        "scratch": Method("from scratch", "scratch"),
        "random_frozen": Method("random encoder, frozen", "random", "code:logistic"),
    }
    for name, make in pretraining.items():
        runs[name] = Run(make, labels=False)
        runs[f"{name}_tuned"] = Run(tuning, begin=name)
        methods[f"{name}_tuned"] = Method(f"{TITLES[name]}, fine-tuned", f"{name}_tuned")
        methods[f"{name}_frozen"] = Method(f"{TITLES[name]}, frozen", name, "code:logistic")
    return Study(title, runs, methods, **changes)


def digits(steps: int = STEPS, **changes: object) -> Study:
    """The study of digits; ``steps`` of pretraining, half as many with labels."""
    pretraining = {
        "vae": lambda labels: study_digits.vae(labels, steps=steps),
        "masked": lambda labels: masked(study_digits.vae(labels, steps=steps), patch=2),
        "contrastive": lambda labels: contrastive(study_digits.vae(labels, steps=steps)),
    }
    fields = {"budgets": (100, 300, 0), "seeds": (0, 1, 2), "detail": (100, 0)}

    def tuning(labels: int) -> ConfigDict:
        return study_digits.cnn(labels, steps=steps // 2)

    return study("Features of digits", pretraining, tuning, **(fields | changes))


def get_study() -> Study:
    return digits()
