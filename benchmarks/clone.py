"""Time README's first command in a fresh clone: git clone, then make train.

python -m benchmarks.clone --out=results/clone.json
"""

import json
import os
import subprocess
import tempfile
import time

from benchmarks import common
from vae_jax.tools import results


def measure() -> common.FIGURES:
    """Seconds from the clone to the report, in an empty folder with an empty cache; accuracy."""
    git = ["git", "rev-parse", "--show-toplevel"]
    top = subprocess.run(git, capture_output=True, text=True, check=True).stdout.strip()
    env = {k: v for k, v in os.environ.items() if not k.startswith(("VAE_JAX", "XLA_", "JAX_"))}
    with tempfile.TemporaryDirectory() as folder:
        env["VAE_JAX_CACHE"] = os.path.join(folder, "cache")  # nothing compiled before
        project = os.path.join(folder, "vae_jax")
        began = time.perf_counter()
        subprocess.run(["git", "clone", "-q", top, project], check=True)
        subprocess.run(["make", "train"], cwd=project, env=env, check=True)
        seconds = time.perf_counter() - began
        with open(os.path.join(project, "runs", "digits", "metrics.json")) as file:
            metrics = json.load(file)
    return {
        "clone_to_report": results.figure(seconds, "s"),
        "accuracy": results.figure(metrics["accuracy"], "", n=metrics["n"]),
    }


def main() -> None:
    args = common.parser(__doc__).parse_args()
    recorder = common.Recorder("clone", args.out)
    recorder.write("configs/digits.py", measure())


if __name__ == "__main__":
    common.script(main)
