"""The network that this project started from, made right; on cifar10_20k, or on digits with
``--config.data.name=digits``.

The original, and what is right here: its encoder gave a mean only and nothing was sampled (here
mean and log-variance of q(z|x), and z is drawn); it took the decoder's hidden units as mean and
log-variance of x (here the decoder's last layer gives the parameters of p(x|z)); its KL took the
variance from the decoder (here from q); it averaged over pixels (here nats are summed, so the KL
weighs what it should); it printed the ELBO as an equality (it is a lower bound on log p(x), and
eval.py puts the IW bound beside it).

    python train.py --config=configs/seed_conv.py --data_dir=~/data --workdir=runs/seed_conv

Figures, time and device: results/seed_conv.json and results/seed_digits.json.
"""

from ml_collections import ConfigDict

from vae_jax import config


def get_config() -> ConfigDict:
    c = config.default()
    c.data.name = "cifar10_20k"
    c.steps = 400
    c.batch = 128
    c.latent = 2
    c.encoder = config.call("encoder", "conv", widths=(64, 64), strides=(1, 1), kernel=3, dense=128)
    c.decoder = config.call("decoder", "conv", dense=128, widths=(64, 64), kernel=3)
    c.classifier = config.call("classifier", "mlp", widths=(128,))
    c.objective = config.call("objective", "joint", gamma=1.0)
    c.optim.warmup = 100
    c.eval.every = 100
    c.log_every = 20
    c.eval.iw_k = 10
    return c
