"""A VAE for each digit and Bayes' rule: the nets of van de Ven et al. 2021 (arXiv:2104.10093).

    python train.py --config=configs/per_class_mnist.py --data_dir=~/data \
        --workdir=runs/per_class_mnist
    python -m vae_jax.evaluate.incremental --workdir=runs/per_class_mnist \
        --samples=1,10,100,1000,10000

For each class an encoder and a decoder of two layers of 85 units (ReLU), z5, a Bernoulli for each
pixel, Adam at 1e-3, 1,000 steps of 128 images of the class: the command that their repository gives
for MNIST (--iters=1000 --fc-units=85 --z-dim=5 --fc-layers=3). Published accuracy with S = 1, 10,
100, 1,000 and 10,000 samples: 91.14, 92.46, 93.25, 93.62 and 93.79 %, over ten seeds.

Here all ten learn side by side, from batches of 1,280 images of any class, so about 128 of each:
the parameters of a class have a gradient from its own images only. The differences: training images
are binarised anew at each step, whose mean loss is the cross-entropy of grey pixels that they train
with; the encoder so sees drawn pixels in training, and grey ones in Bayes' rule; weights begin as
ours do. A thousandth of the images are validation's. q(y|x), which the model has beside its VAEs,
shares nothing with them and is not used by Bayes' rule. Their code weighs samples in Bayes' rule by
N(x; E[x|y, z], I), not by the Bernoulli that it trains with: ``--unit_gaussian`` of the second
command.
"""

from ml_collections import ConfigDict

from vae_jax import config


def get_config() -> ConfigDict:
    c = config.default()
    c.data.name = "mnist"
    c.data.binarize = "dynamic"
    c.data.validation = 0.001
    c.steps = 1000
    c.batch = 1280
    c.steps_per_call = 20
    c.unroll = False
    c.latent = 5
    c.encoder = config.call("encoder", "mlp", widths=(85, 85))
    c.decoder = config.call("decoder", "mlp", widths=(85, 85))
    c.classifier = config.call("classifier", "mlp")
    c.likelihood = config.call("likelihood", "bernoulli")
    c.model = config.call("model", "per_class")
    c.objective = config.call("objective", "m2", alpha=1.0)
    c.optim.name = "adam"
    c.optim.lr = 1e-3
    c.optim.schedule = "constant"
    c.eval.every = 1000
    c.log_every = 100
    c.eval.select = "elbo"
    c.eval.iw_k = 10
    return c
