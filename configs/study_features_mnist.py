"""configs/study_features.py on MNIST, with the convolutional encoder of configs/mnist.py.

    python -m vae_jax.tools.study --config=configs/study_features_mnist.py --data_dir=~/data \
        --workdir=runs/study_features_mnist

Images are moved by up to two pixels in pretraining and with labels; those of SimCLR by its views.

No figures of it are published yet.
"""

from ml_collections import ConfigDict

from configs import mnist, study_features, study_mnist
from vae_jax import config
from vae_jax.tools.study import Study

STEPS = 1500  # of pretraining
BATCH = 128


def vae(data: str, flip: bool) -> ConfigDict:
    c = study_mnist.sized(mnist.get_config(), STEPS)
    c.data.name = data
    c.data.flip = flip
    c.batch = BATCH
    c.classifier = config.call("classifier", "none")
    c.objective = config.call("objective", "elbo")
    return c


def images(data: str, budgets: tuple[int, ...], flip: bool = False) -> Study:
    """The study of a data set of images."""

    def contrastive(labels: int) -> ConfigDict:
        c = study_features.contrastive(vae(data, flip))
        c.data.shift = 0
        return c

    def tuning(labels: int) -> ConfigDict:
        c = study_mnist.cnn(labels, shift=2)
        c.data.name = data
        c.data.flip = flip
        return study_mnist.sized(c, 500 if labels else 1000, labels)

    pretraining = {
        "vae": lambda labels: vae(data, flip),
        "masked": lambda labels: study_features.masked(vae(data, flip), patch=4),
        "contrastive": contrastive,
    }
    fields = {"budgets": budgets, "seeds": (0, 1), "detail": budgets}
    return study_features.study(f"Features of {data}", pretraining, tuning, **fields)


def get_study() -> Study:
    return images("mnist", (100, 1000, 0))
