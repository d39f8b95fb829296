"""A VAE on statically binarised MNIST (Larochelle's files): MLP with 400 hidden units, z40; published 89.9 nats.

    python train.py --config=configs/static_mnist.py --data_dir=~/data --workdir=runs/static_mnist

Figures, time and device: results/static_mnist.json.
"""

from vae_jax import config


def get_config():
    c = config.default()
    c.data.name = "binarized_mnist"
    c.steps, c.batch, c.steps_per_call, c.unroll = 100_000, 100, 50, False
    c.latent, c.bias_from_data = 40, True
    c.encoder = config.call("encoder", "mlp", widths=(400,), activation="tanh")
    c.decoder = config.call("decoder", "mlp", widths=(400,), activation="tanh")
    c.likelihood = config.call("likelihood", "bernoulli")
    c.objective = config.call("objective", "elbo")
    c.optim.ema, c.eval.every, c.log_every, c.eval.iw_k = 0.999, 5000, 1000, 200
    return c
