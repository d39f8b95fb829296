"""M2 on MNIST with 100 labels: what longer gives, each length under a cosine of its own, three
seeds.

    python -m vae_jax.tools.study --config=configs/study_m2.py --data_dir=~/data \
        --workdir=runs/study_m2

Figures, times and device: results/study_m2.json; of 10,000 steps results/study_mnist.json (m2.100).
"""

from configs import study_mnist
from vae_jax.tools.study import Method, Run, Study

STEPS = (2_000, 5_000, 20_000, 50_000)


def m2(steps: int) -> Run:
    return Run(lambda labels: study_mnist.m2(labels, steps))


def get_study() -> Study:
    methods = {f"steps_{n}": Method(f"{n:,} steps", f"m2_{n}") for n in STEPS}
    runs = {f"m2_{n}": m2(n) for n in STEPS}
    return Study("M2 with 100 labels", runs, methods, (100,), (0, 1, 2), (100,))
