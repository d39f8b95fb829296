"""Compare the training step on one and on eight devices; count recompilations and transfers.

python -m benchmarks.step --out=results/step.json
"""

import os
import subprocess
import sys

from benchmarks import common

STEPS = 100
BAD_INPUT = "tests/config/test_bad_flags.py"


def count_bad_inputs() -> int:
    """How many wrong flags the tests give, each answered by one line."""
    command = [sys.executable, "-m", "pytest", "--collect-only", BAD_INPUT]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    return done.stdout.count("::test_flags[")


def measure() -> common.FIGURES:
    """The largest relative difference of the loss traces, and the step's calls to the host."""
    import jax
    import numpy as np

    from benchmarks import parity
    from vae_jax.tools import results

    one, _ = parity.trace(parity.small(), jax.devices()[:1], STEPS)
    eight, _ = parity.trace(parity.small(), jax.devices()[:8], STEPS)
    difference = float(np.max(np.abs(one - eight) / np.abs(one)))
    compilations, transfers = parity.host_calls()
    return {
        "trace_difference": results.figure(difference, "relative", n=STEPS),
        "recompilations": results.figure(compilations, "after the first step", n=5),
        "host_transfers": results.figure(transfers, "inside a step", n=5),
        "bad_inputs": results.figure(count_bad_inputs(), "one clear line each"),
    }


def main() -> None:
    args = common.parser(__doc__).parse_args()
    os.environ.setdefault("JAX_PLATFORMS", "cpu")
    os.environ["XLA_FLAGS"] = "--xla_force_host_platform_device_count=8"
    recorder = common.Recorder("step", args.out)
    recorder.write("digits, joint, MLP, batch 32", measure())


if __name__ == "__main__":
    common.script(main)
