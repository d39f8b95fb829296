"""MNIST with 1,000 labels, CCVAE-style: a Gaussian prior for each label shapes z, Bayes' rule on
it reads the label.

    python train.py --config=configs/ccvae_mnist.py --data_dir=~/data --workdir=runs/ccvae_mnist

The joint objective with p(z|y) in the place of p(z) and no net for p(y|z): see
``nets.heads.Labelled``. Joy et al. 2021 (arXiv:2006.10102) split z into dimensions with a label's
prior and others; here all of z has it.

Not run to its end yet: no file in results/.
"""

from ml_collections import ConfigDict

from configs import m1_mnist
from vae_jax import config


def get_config() -> ConfigDict:
    c = m1_mnist.get_config()
    c.data.labels = 1000
    c.data.labelled_batch = 100
    c.prior = config.call("prior", "labelled")
    c.classifier = config.call("classifier", "bayes")
    c.objective = config.call("objective", "joint", gamma=10.0)
    return c
