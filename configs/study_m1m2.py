"""M1+M2 on MNIST with 100 labels, three seeds: configs/m1m2_mnist.py on the M1 of
configs/m1_mnist.py, which has twice the steps of that in configs/study_mnist.py.

    python -m vae_jax.tools.study --config=configs/study_m1m2.py --data_dir=~/data \
        --workdir=runs/study_m1m2

Figures, times and device: results/study_m1m2.json.
"""

from configs import m1_mnist, study_mnist
from vae_jax.tools.study import Method, Run, Study


def get_study() -> Study:
    m1 = Run(lambda labels: study_mnist.sized(m1_mnist.get_config(), 20_000), labels=False)
    runs = {"m1": m1, "m1m2": Run(study_mnist.m1m2, begin="m1")}
    return Study("M1+M2", runs, {"m1m2": Method("M1+M2", "m1m2")}, (100,), (0, 1, 2), (100,))
