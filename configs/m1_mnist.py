"""MNIST, binarised at each step: the M1 of Kingma et al. 2014 (arXiv:1406.5298), two hidden layers
of 600, z50; ReLU, which learns faster, where the paper has softplus.

    python train.py --config=configs/m1_mnist.py --data_dir=~/data --workdir=runs/m1_mnist

Its codes are what probes (``vae_jax.tools.study``: logistic regression, SVM, kNN) and
configs/m1m2_mnist.py learn from.

Figures, time and device: results/m1_mnist.json; three seeds of 10,000 steps: m1_knn, m1_svm and
m1_logistic in results/study_mnist.json."""

from ml_collections import ConfigDict

from vae_jax import config


def get_config() -> ConfigDict:
    c = config.default()
    c.data.name = "mnist"
    c.data.binarize = "dynamic"
    c.steps = 20_000
    c.batch = 100
    c.steps_per_call = 50
    c.unroll = False
    c.latent = 50
    c.encoder = config.call("encoder", "mlp", widths=(600, 600), activation="relu")
    c.decoder = config.call("decoder", "mlp", widths=(600, 600), activation="relu")
    c.likelihood = config.call("likelihood", "bernoulli")
    c.objective = config.call("objective", "elbo")
    c.optim.lr = 1e-3
    c.optim.warmup = 500
    c.optim.ema = 0.999
    c.bias_from_data = True
    c.eval.every = 5000
    c.log_every = 500
    c.eval.iw_k = 100
    return c
