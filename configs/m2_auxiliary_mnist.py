"""MNIST with 100 labels: M2 with the auxiliary classification loss of Pyro's example ``ss_vae_M2``.

    python -m vae_jax.tools.study --config=configs/m2_auxiliary_mnist.py --data_dir=~/data \
        --workdir=runs/m2_auxiliary

That is five seeds, each with its own choice of labels; a single run is train.py with this config.
Published: 93.19 % with a 95 % interval of ± 0.60 over five choices of labels
(https://pyro.ai/examples/ss-vae.html, table 1, third variant).

As there: 50,000 images to train on, 100 of them with a label, ten of each class; batches of 100;
one hidden layer of 500 softplus units in q(y|x), q(z|x, y) and p(x|y, z); z of 50 numbers; the sum
over y is exact; a weight ``alpha`` = 46 of a labelled example's cross-entropy, the example's
``aux_loss_multiplier``.

What differs: (1) Pyro meets the labelled batch once in 500 batches, with steps of its own for both
losses, so that the weight beside a mean of U is 46 / 500 and that of L is 1 / 500. Its nets begin
at weights of N(0, 0.001²), so that no label means anything to the decoder until the cross-entropy
has taught q(y|x) what it means. Ours begin with label rows of unit variance, which a small weight
does not overrule: in trials of 3,000 steps 0.6 was much worse than 10. So here the whole multiplier
stands in every step, which was not tried before, and L has the 1 / 500. (2) It models grey pixels
as Bernoulli; here they are drawn at each step. (3) It chooses the multiplier and the epoch by
10,000 validation labels; here 20 more labels belong to validation images, and the last step is
evaluated. (4) Adam's learning rate is 4.2e-4 for 50 epochs there, and 12e-3 under a cosine here, as
in configs/m2_mnist.py, which has the weight 10.

Not run to its end yet: no file in results/.
"""

from ml_collections import ConfigDict

from configs import m2_mnist
from vae_jax import config
from vae_jax.tools.study import Method, Run, Study

LABELS = 120  # a sixth of them validation's


def get_config() -> ConfigDict:
    c = m2_mnist.get_config()
    c.data.validation = 1 / 6
    c.data.labels = LABELS
    c.steps = 10_000
    c.objective = config.call("objective", "m2", alpha=46.0, labelled=1 / 500)
    return c


def of_budget(labels: int) -> ConfigDict:
    """The config for a study, whose budgets are numbers of labels."""
    c = get_config()
    c.data.labels = labels
    return c


def get_study() -> Study:
    runs = {"m2_auxiliary": Run(of_budget)}
    methods = {"m2_auxiliary": Method("M2, Pyro's auxiliary loss", "m2_auxiliary")}
    seeds = (0, 1, 2, 3, 4)
    return Study("M2 with 100 labels and an auxiliary loss", runs, methods, (LABELS,), seeds, ())
