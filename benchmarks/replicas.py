"""Time five seeds trained as one program, and one after the other.

python -m benchmarks.replicas --out=results/replicas.json
"""

import json
import tempfile
import time

import jax
import numpy as np
from ml_collections import ConfigDict

from benchmarks import common
from configs import digits
from vae_jax import config as config_lib
from vae_jax.tools import results
from vae_jax.train import loop

SEEDS = 5
ROUNDS = 3


def short_config(seed: int = 0) -> ConfigDict:
    """The digits config with 2,000 steps, 50 in each call."""
    c = digits.get_config()
    c.seed = seed
    c.steps = 2000
    c.steps_per_call = 50
    c.eval.every = 1000
    c.log_every = 500
    c.unroll = False
    return c


def last_elbo(workdir: str) -> float:
    """The ELBO of a run's last validation, nats per image."""
    with open(f"{workdir}/metrics.jsonl") as file:
        rows = [json.loads(line) for line in file]
    return [row["elbo"] for row in rows if row["split"] == "validation"][-1]


def train_seconds(configs: dict[str, ConfigDict]) -> float:
    """Seconds to train {workdir: config} one after the other."""
    began = time.perf_counter()
    for workdir, c in configs.items():
        loop.train(c, workdir)
    return time.perf_counter() - began


def median(values: list[float], unit: str) -> dict:
    spread = float(np.std(values, ddof=1))
    return results.figure(float(np.median(values)), unit, sd=spread, n=len(values))


def measure() -> common.FIGURES:
    """Seconds of both, with compilation, steps and checkpoints, and how far their bounds differ."""
    together = short_config()
    config_lib.replicate(together, "seed", range(SEEDS))
    seconds_together = []
    seconds_alone = []
    differences = []
    for _ in range(ROUNDS):
        with tempfile.TemporaryDirectory() as folder:
            alone = {f"{folder}/{seed}": short_config(seed) for seed in range(SEEDS)}
            seconds_together.append(train_seconds({f"{folder}/together": together}))
            seconds_alone.append(train_seconds(alone))
            for seed in range(SEEDS):
                replica = last_elbo(f"{folder}/together/replica_{seed}")
                differences.append(abs(replica - last_elbo(f"{folder}/{seed}")))
        jax.clear_caches()
    ratios = np.array(seconds_alone) / np.array(seconds_together)
    unit = "nats / image, at most, after 2,000 steps"
    return {
        "together": median(seconds_together, "s"),
        "one_by_one": median(seconds_alone, "s"),
        "one_by_one_over_together": median(ratios.tolist(), ""),
        "elbo_apart": results.figure(max(differences), unit, n=SEEDS),
    }


def main() -> None:
    args = common.parser(__doc__).parse_args()
    recorder = common.Recorder("replicas", args.out)
    recorder.write("configs/digits.py, 50 steps a call, seeds 0-4", measure())


if __name__ == "__main__":
    common.script(main)
