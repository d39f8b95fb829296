"""Figures that no training run gives by itself.

python -m tests.measure clone --out=results/clone.json     # git clone, make train: seconds to the report
python -m tests.measure step --out=results/step.json       # one against eight devices, recompilations
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time


def clone():
    """Seconds and test accuracy of README's first command in a fresh clone in an empty folder."""
    from vae_jax import results

    top = subprocess.run(["git", "rev-parse", "--show-toplevel"], capture_output=True, text=True, check=True).stdout
    with tempfile.TemporaryDirectory() as folder:
        env = {k: v for k, v in os.environ.items() if not k.startswith(("VAE_JAX", "XLA_", "JAX_"))}
        env["VAE_JAX_CACHE"] = os.path.join(folder, "cache")  # nothing compiled before
        began = time.perf_counter()
        subprocess.run(["git", "clone", "-q", top.strip(), "vae_jax"], cwd=folder, check=True)
        subprocess.run(["make", "train"], cwd=os.path.join(folder, "vae_jax"), env=env, check=True)
        seconds = time.perf_counter() - began
        with open(os.path.join(folder, "vae_jax", "runs", "digits", "metrics.json")) as f:
            metrics = json.load(f)
    return "configs/digits.py", {
        "clone_to_report": results.figure(seconds, "s"),
        "accuracy": results.figure(metrics["accuracy"], "", n=metrics["n"]),
    }


def step():
    """The largest relative difference of a loss trace on eight devices, and what the step asks of the host."""
    os.environ.setdefault("JAX_PLATFORMS", "cpu")
    os.environ["XLA_FLAGS"] = "--xla_force_host_platform_device_count=8"
    import jax
    import numpy as np

    from tests import test_errors, test_step
    from vae_jax import results

    steps = 100
    (one, _), (eight, _) = (test_step.trace(test_step.small(), jax.devices()[:n], steps) for n in (1, 8))
    tests = ["test_nothing_recompiles_and_nothing_crosses_from_the_host", "test_the_state_is_donated"]
    for name in tests:  # they raise where one recompilation or one transfer happens
        getattr(test_step, name)()
    return "digits, joint, MLP, batch 32", {
        "trace_difference": results.figure(float(np.max(np.abs(one - eight) / np.abs(one))), "relative", n=steps),
        "recompilations": results.figure(0, "after the first step", n=5),
        "host_transfers": results.figure(0, "inside a step", n=5),
        "bad_inputs": results.figure(len(test_errors.FLAGS), "one clear line each"),
    }


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("what", choices=("clone", "step"))
    parser.add_argument("--out", required=True)
    args = parser.parse_args()
    began = time.time()
    config, figures = {"clone": clone, "step": step}[args.what]()
    from vae_jax import results

    command = f"python -m tests.measure {args.what} --out={args.out}"
    results.write(args.out, command=command, config=config, seed=0, seconds=time.time() - began, figures=figures)


if __name__ == "__main__":
    sys.exit(main())
