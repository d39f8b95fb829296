"""MNIST with 100 labels: M2 of Kingma et al. 2014 (arXiv:1406.5298), MLP nets of 500-500 hidden units, z50.

    python train.py --config=configs/m2_mnist.py --data_dir=~/data --workdir=runs/m2_mnist

100 labels in all, of which 10 are validation's; --config.data.labels=1000 has ten times as many of both, and wants
--config.objective.labelled=0.1. The checkpoint whose bound on the validation images, labels not looked at, is best
is the one evaluated.

Not run to its end yet: no file in results/.
"""

from vae_jax import config


def get_config():
    c = config.default()
    c.data.name, c.data.binarize = "mnist", "dynamic"
    c.data.labels, c.data.labelled_batch = 100, 100
    c.steps, c.batch, c.steps_per_call, c.unroll = 30_000, 100, 50, False
    c.latent = 50
    c.encoder = config.call("encoder", "mlp", widths=(500, 500), activation="softplus")
    c.decoder = config.call("decoder", "mlp", widths=(500, 500), activation="softplus")
    c.classifier = config.call("classifier", "mlp")
    c.likelihood = config.call("likelihood", "bernoulli")
    c.objective = config.call("objective", "m2", alpha=50.0, labelled=0.01)
    c.optim.name, c.optim.lr, c.optim.ema = "adam", 5e-4, 0.999
    c.eval.every, c.log_every, c.eval.select, c.eval.iw_k = 2500, 500, "elbo", 20
    return c
