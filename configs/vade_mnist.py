"""VaDE (Jiang et al. 2017, arXiv:1611.05148) on MNIST: ten clusters learnt with the code.

    python train.py --config=configs/vade_mnist.py --data_dir=~/data --workdir=runs/vade_mnist
    python eval.py --workdir=runs/vade_mnist --tasks=clusters

It begins at the autoencoder of configs/ae_mnist.py and the mixture fitted to its codes,
runs/ae_mixture_mnist. Clusters are the prior's: argmax p(c|z) at the mean of q(z|x). Both, for
each of several seeds:

    python -m vae_jax.tools.clusters --begin=configs/ae_mnist.py --config=configs/vade_mnist.py \
        --seeds=0,1,2,3,4 --data_dir=~/data --workdir=runs/clusters_mnist

The nets are smaller than the paper's 500-500-2000, and training is shorter.

Figures of both, time and device: results/clusters_mnist.json.
"""

from ml_collections import ConfigDict

from configs import ae_mnist
from vae_jax import config


def get_config() -> ConfigDict:
    c = ae_mnist.get_config()
    c.init_from = "runs/ae_mixture_mnist"
    c.steps = 7500
    c.prior = config.call("prior", "mixture", components=10)
    c.objective = config.call("objective", "vade")
    c.eval.select = "elbo"
    c.eval.iw_k = 20
    return c
