"""A smaller matrix than configs/study_mnist.py, on Fashion-MNIST: the same nets, M2 for half its
steps, M1+M2 a third.

    python -m vae_jax.tools.study --config=configs/study_fashion.py --data_dir=~/data \
        --workdir=runs/study_fashion

The dense net has M1's encoder and learns from its binarised images: beside the CNN's and the
pixels' rows it shows what these lose. Figures, times and device: results/study_fashion.json.
"""

from collections.abc import Callable

from ml_collections import ConfigDict

from configs import study_mnist
from vae_jax.tools.study import Study

PLAIN = ("cnn", "net", "pixels_knn", "pixels_logistic", "m1_logistic", "m1_svm", "m1_knn")
METHODS = (*PLAIN, "joint", "m2", "m1m2", "generative")
BUDGETS = {"m1m2": (100,), "generative": (0,)}
FEWER = {"m2": 2, "m1m2": 3}


def fashion(name: str, make: Callable[[int], ConfigDict]) -> Callable[[int], ConfigDict]:
    """The config of a run of study_mnist.py on Fashion-MNIST, with fewer steps."""

    def config(labels: int) -> ConfigDict:
        c = make(labels)
        c.data.name = "fashion_mnist"
        steps = c.steps // FEWER.get(name, 1)
        return study_mnist.sized(c, steps, labels if c.data.labelled_batch else 0)

    return config


def get_study() -> Study:
    s = study_mnist.study(budgets=(100, 0))
    runs = {name: run._replace(config=fashion(name, run.config)) for name, run in s.runs.items()}
    methods = {name: s.methods[name]._replace(budgets=BUDGETS.get(name, ())) for name in METHODS}
    return s._replace(title="Fashion-MNIST", runs=runs, methods=methods)
