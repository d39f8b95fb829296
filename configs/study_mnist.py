"""Methods x label budgets x seeds on MNIST; what it took stands in its results file: hours of one
CPU core, which --only=METHODS shares among processes of one workdir.

    python -m vae_jax.tools.study --config=configs/study_mnist.py --data_dir=~/data \
        --workdir=runs/study_mnist

The CNN is that of configs/mnist_cnn.py; M1, joint, CCVAE and the dense net have one encoder,
layers of 600-600, M2 that of configs/m2_mnist.py. The dense ones learn from binarised images and
are asked about grey ones, which CNN and pixels' probes see.

Figures, times and device: results/study_mnist.json.
"""

from ml_collections import ConfigDict

from configs import ccvae_mnist, m1_mnist, m1m2_mnist, m2_mnist, mnist_cnn
from vae_jax import config
from vae_jax.tools.study import Method, Run, Study

IMAGES = 54_000


def sized(c: ConfigDict, steps: int, labels: int | None = None) -> ConfigDict:
    """With so many steps, validated twice, and a labelled stream where there is a budget."""
    c.steps = steps
    c.eval.every = steps // 2
    c.log_every = steps // 4
    c.optim.warmup = min(c.optim.warmup, steps // 4)
    c.data.labelled_batch = 100 if labels else 0
    return c


def cnn(labels: int, shift: int = 0) -> ConfigDict:
    c = sized(mnist_cnn.get_config(), 1000 if labels else 3000, labels)
    c.data.shift = shift
    c.batch = 8 if labels else 128  # of images whose labels nobody looks at: they cost nothing here
    return c


def m1(labels: int, beta: float = 1.0) -> ConfigDict:
    c = sized(m1_mnist.get_config(), 10_000)
    c.objective.beta = beta
    return c


def joint(labels: int) -> ConfigDict:
    c = sized(m1_mnist.get_config(), 5000, labels)
    c.classifier = config.call("classifier", "mlp")
    c.objective = config.call("objective", "joint", gamma=50.0)
    return c


def net(labels: int) -> ConfigDict:
    """The same encoder, cross-entropy only."""
    c = sized(m1_mnist.get_config(), 1000 if labels else 5000, labels)
    c.decoder = config.call("decoder", "none")
    c.bias_from_data = False
    c.classifier = config.call("classifier", "mlp")
    c.objective = config.call("objective", "supervised")
    c.batch = 8 if labels else 100
    return c


def ccvae(labels: int) -> ConfigDict:
    return sized(ccvae_mnist.get_config(), 5000, labels)


def m2(labels: int, steps: int = 0) -> ConfigDict:
    c = sized(m2_mnist.get_config(), steps or (10_000 if labels else 20_000), labels)
    c.optim.lr = 12e-3 if labels else 3e-3
    c.objective.labelled = labels / IMAGES or 1.0
    return c


def apart(labels: int) -> ConfigDict:
    """A VAE of two layers of 200 for each class; for all labels only."""
    c = sized(m2_mnist.get_config(), 10_000, labels)
    c.encoder = config.call("encoder", "mlp", widths=(200, 200))
    c.decoder = config.call("decoder", "mlp", widths=(200, 200))
    c.model = config.call("model", "per_class")
    c.objective = config.call("objective", "m2")
    c.optim.lr = 2e-3
    c.batch = 200
    return c


def m1m2(labels: int) -> ConfigDict:
    c = sized(m1m2_mnist.get_config(), {100: 60_000, 1000: 30_000}.get(labels, 10_000), labels)
    c.objective.labelled = labels / IMAGES or 1.0
    return c


def study(**changes: object) -> Study:
    runs = {
        "cnn": Run(cnn),
        "cnn_shifted": Run(lambda labels: cnn(labels, shift=2)),
        "net": Run(net),
        "random": Run(m1, labels=False, steps=False),
        "grey": Run(cnn, labels=False, steps=False),  # what the pixels are read from
        "autoencoder": Run(lambda labels: m1(labels, beta=0.0), labels=False),
        "m1": Run(m1, labels=False),
        "joint": Run(joint),
        "ccvae": Run(ccvae),
        "m2": Run(m2),
        "m1m2": Run(m1m2, begin="m1"),
        "apart": Run(apart),
    }
    methods = {
        "cnn": Method("CNN", "cnn"),
        "cnn_shifted": Method("CNN, images shifted", "cnn_shifted"),
        "net": Method("dense net", "net"),
        "pixels_knn": Method("pixels, kNN", "grey", "pixels:knn"),
        "pixels_logistic": Method("pixels, logistic regression", "grey", "pixels:logistic"),
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
    fields = {"budgets": (100, 1000, 0), "seeds": (0, 1, 2), "detail": (100, 0), "iw_k": 20}
    return Study("MNIST", runs, methods, **(fields | changes))


def get_study() -> Study:
    return study()
