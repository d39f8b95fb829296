"""MNIST with 1,000 labels, CCVAE-style: a Gaussian prior for each label shapes z, Bayes' rule on it reads the label.

    python train.py --config=configs/ccvae_mnist.py --data_dir=~/data --workdir=runs/ccvae_mnist

The joint objective with p(z|y) in the place of p(z) and no net for p(y|z): see ``nets.heads.Labelled``. Joy et al. 2021
(arXiv:2006.10102) split z into dimensions with a label's prior and others; here all of z has it.

Not run to its end yet: no file in results/.
"""

from configs import m1_mnist
from vae_jax import config


def get_config():
    c = m1_mnist.get_config()
    c.data.labels, c.data.labelled_batch = 1000, 100
    c.prior, c.classifier = config.call("prior", "labelled"), config.call("classifier", "bayes")
    c.objective = config.call("objective", "joint", gamma=10.0)
    return c
