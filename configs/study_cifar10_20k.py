"""What a one-layer VAE's codes know of photographs: 20,000 of CIFAR-10's, 1,000 labels and all.

    python -m vae_jax.data prepare cifar10_20k --data_dir=~/data
    python -m vae_jax.tools.study --config=configs/study_cifar10_20k.py --data_dir=~/data \
        --workdir=runs/study

CNN, M1 and joint have the convolutional encoder of configs/fashion_mnist.py, images shifted and
mirrored.

Figures, times and device: results/study_cifar10_20k.json.
"""

from ml_collections import ConfigDict

from configs import fashion_mnist, study_mnist
from vae_jax import config
from vae_jax.tools.study import Method, Run, Study


def joint(labels: int, steps: int = 4000) -> ConfigDict:
    c = fashion_mnist.get_config()
    c.data.name = "cifar10_20k"
    return study_mnist.sized(c, steps, labels)


def cnn(labels: int) -> ConfigDict:
    c = joint(labels, 1000 if labels else 4000)
    c.decoder = config.call("decoder", "none")
    c.objective = config.call("objective", "supervised")
    c.batch = 8 if labels else 128
    return c


def m1(labels: int) -> ConfigDict:
    c = joint(0)
    c.classifier = config.call("classifier", "none")
    c.objective = config.call("objective", "elbo")
    return c


def get_study() -> Study:
    runs = {
        "cnn": Run(cnn),
        "begun": Run(cnn, labels=False, steps=False),
        "m1": Run(m1, labels=False),
        "joint": Run(joint),
    }
    methods = {
        "cnn": Method("CNN", "cnn"),
        "pixels_knn": Method("pixels, kNN", "begun", "pixels:knn"),
        "pixels_logistic": Method("pixels, logistic regression", "begun", "pixels:logistic"),
        "m1_logistic": Method("M1, logistic regression", "m1", "code:logistic"),
        "m1_svm": Method("M1, SVM", "m1", "code:svm"),
        "m1_knn": Method("M1, kNN", "m1", "code:knn"),
        "joint": Method("joint", "joint", budgets=(0,)),
    }
    return Study("cifar10_20k", runs, methods, (1000, 0), (0, 1), (0,))
