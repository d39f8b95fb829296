"""The one-layer VAE of Burda et al. 2016 (arXiv:1509.00519, table 1: 86.76), on MNIST binarised at
each step.

    python train.py --config=configs/vae_mnist.py --data_dir=~/data --workdir=runs/vae_mnist \
        --config.steps=1180000 --config.optim.schedule=cosine

tanh 784-200-200-z50, batches of 20, Adam with eps 1e-4, learning rate 1e-3 falling by 10^(-1/7)
after each of the stages of 3^i epochs, 3,280 epochs in all: that is this file unchanged. The
command above is the same in 400 epochs, with the learning rate falling as a cosine: most of a
short run would otherwise be spent at 1e-4. 1,000 training images are held out; the checkpoint
whose bound on them is best is the one evaluated.

Two more cosines go on from its parameters:

    python train.py --config=configs/vae_mnist.py --data_dir=~/data --workdir=runs/vae_mnist_more \
        --config.init_from=runs/vae_mnist --config.steps=442500 --config.eval.every=44250 \
        --config.optim.schedule=cosine --config.optim.lr=5e-4
    python train.py --config=configs/vae_mnist.py --data_dir=~/data --workdir=runs/vae_mnist_last \
        --config.init_from=runs/vae_mnist_more --config.steps=885000 --config.eval.every=59000 \
        --config.optim.schedule=cosine

Figures, time and device of the 400, 150 and 300 epochs: results/vae_mnist.json,
vae_mnist_more.json and vae_mnist_last.json.
"""

from ml_collections import ConfigDict

from vae_jax import config

EPOCH = 59_000 // 20


def get_config() -> ConfigDict:
    c = config.default()
    c.data.name = "mnist"
    c.data.binarize = "dynamic"
    c.data.validation = 1 / 60
    c.steps = 3280 * EPOCH
    c.batch = 20
    c.steps_per_call = 50
    c.unroll = False
    c.latent = 50
    c.bias_from_data = True
    c.encoder = config.call("encoder", "mlp", widths=(200, 200), activation="tanh")
    c.decoder = config.call("decoder", "mlp", widths=(200, 200), activation="tanh")
    c.likelihood = config.call("likelihood", "bernoulli")
    c.objective = config.call("objective", "elbo")
    c.optim.name = "adam"
    c.optim.eps = 1e-4
    c.optim.schedule = "stages"
    c.eval.every = 41 * EPOCH
    c.log_every = EPOCH
    c.eval.iw_k = 5000
    return c
