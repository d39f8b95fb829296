"""An autoencoder on MNIST, whose codes are clustered afterwards; the beginning of vade_mnist.py.

    python train.py --config=configs/ae_mnist.py --data_dir=~/data --workdir=runs/ae_mnist
    python eval.py --workdir=runs/ae_mnist --tasks=clusters
    python -m vae_jax.tools.density --workdir=runs/ae_mnist --into=runs/ae_mixture_mnist

No term but the reconstruction: no noise in the code, no weight on its size. The images are
binarised at each step, codes are read from grey ones. The last command fits a mixture of ten
Gaussians to the codes.

configs/vade_mnist.py says how both are trained for several seeds.
"""

from ml_collections import ConfigDict

from vae_jax import config


def get_config() -> ConfigDict:
    c = config.default()
    c.data.name = "mnist"
    c.data.binarize = "dynamic"
    c.steps = 5000
    c.batch = 128
    c.steps_per_call = 50
    c.unroll = False
    c.latent = 10
    c.encoder = config.call("encoder", "mlp", widths=(500, 500))
    c.decoder = config.call("decoder", "mlp", widths=(500, 500))
    c.likelihood = config.call("likelihood", "bernoulli")
    c.objective = config.call("objective", "rae", beta=0.0, decoder_l2=0.0)
    c.eval.every = 2500
    c.log_every = 1000
    c.eval.iw_k = 1
    return c
