"""A VampPrior of 500 pseudo-inputs on statically binarised MNIST (Tomczak & Welling 2018, table 1:
85.57 nats).

    python train.py --config=configs/vamp_mnist.py --data_dir=~/data --workdir=runs/vamp_mnist \
        --config.steps=50000 --config.warmup.steps=12500 --config.optim.lr=1e-3 \
        --config.optim.schedule=cosine \
        --config.eval.every=2500

Gated 784-300-300-z40, batches of 100, Adam at 5e-4, KL warmed up over 100 epochs.
configs/normal_mnist.py is the same net under N(0, I), published 88.56. The paper trains until
validation stands still for 50 epochs; this file as it stands is 400 epochs and the best
checkpoint. The command above is 100 epochs, 25 of them of warm-up.

Figures, time and device of the 100 epochs: results/vamp_mnist.json.
"""

from ml_collections import ConfigDict

from vae_jax import config

EPOCH = 50_000 // 100


def get_config() -> ConfigDict:
    c = config.default()
    c.data.name = "binarized_mnist"
    c.steps = 400 * EPOCH
    c.batch = 100
    c.steps_per_call = 50
    c.unroll = False
    c.latent = 40
    c.encoder = config.call("encoder", "mlp", widths=(300, 300), activation="gated")
    c.decoder = config.call("decoder", "mlp", widths=(300, 300), activation="gated")
    c.prior = config.call("prior", "vamp", components=500)
    c.likelihood = config.call("likelihood", "bernoulli")
    c.objective = config.call("objective", "elbo")
    c.warmup.steps = 100 * EPOCH
    c.optim.name = "adam"
    c.optim.lr = 5e-4
    c.optim.schedule = "constant"
    c.optim.ema = 0.999
    c.eval.every = 10 * EPOCH
    c.log_every = EPOCH
    c.eval.iw_k = 5000
    return c
