"""The same loss trace and update in every mode and mesh, against jit on one device.

python -m benchmarks.modes --data_dir=DIR --out=results/modes.json

The modes and the tiny models are those of benchmarks/parity.py. With ``--data_dir`` the images
are MNIST's, otherwise digits. ``iwae_binary`` is the importance bound as it is published, on
pixels of 0 and 1. An interrupted measurement goes on with the modes that its file lacks.
"""

import argparse
import os
import re

import numpy as np
from ml_collections import ConfigDict

from benchmarks import common

BINARY = {"data__binarize": "dynamic", "likelihood__name": "bernoulli"}
OBJECTIVES = ("joint", "m2", "iwae", "iwae_binary")


def make_config(name: str, data_dir: str, **fields) -> ConfigDict:
    """The tiny config of an objective, with the mode's fields."""
    from benchmarks import parity

    if data_dir:
        fields |= {"data__name": "mnist", "data__dir": data_dir}
    if name == "iwae_binary":
        return parity.objective("iwae", **BINARY, **fields)
    return parity.objective(name, **fields)


def loss_trace(c: ConfigDict, devices: int, steps: int) -> np.ndarray:
    """The losses of ``steps`` calls on so many devices; shape [steps]."""
    from benchmarks import parity

    state, program = parity.built(c, devices)
    at = program.names.index("loss")
    losses = []
    for _ in range(steps):
        state, values = program.run(state, program.source, program.key)
        losses.append(float(np.asarray(values)[0, at]))
    return np.array(losses)


def measure(
    name: str, args: argparse.Namespace, recorder: common.Recorder, figures: common.FIGURES
) -> None:
    """Add the figures of one objective in every mode to ``figures``, and write them after each."""
    import jax

    from benchmarks import parity
    from vae_jax.tools import results

    reference = None
    for mode, (fields, devices) in parity.MODES.items():
        key = f"{name}_{re.sub(r'[^a-z0-9]+', '_', mode)}"
        if f"{key}_update" in figures or (name == "joint" and "samples" in mode):
            continue
        if reference is None:
            c = make_config(name, args.data_dir)
            reference = loss_trace(c, 1, args.steps), parity.update(c, 1)
        losses, update = reference
        c = make_config(name, args.data_dir, **fields)
        trace = loss_trace(c, devices, args.steps)
        trace_gap = np.max(np.abs(trace - losses) / np.abs(losses))
        update_gap = parity.largest_gap(c, update, devices)
        figures[f"{key}_trace"] = results.figure(trace_gap, "relative, at most", n=args.steps)
        figures[f"{key}_update"] = results.figure(update_gap, "relative")
        print(f"{key}: trace {trace_gap:.1e}, update {update_gap:.1e}", flush=True)
        recorder.write(None, figures)
        jax.clear_caches()


def add_largest(figures: common.FIGURES) -> None:
    """Add the largest difference over all cells, and over those of ``iwae_binary``."""
    from vae_jax.tools import results

    for prefix, start in (("largest_", ""), ("iwae_binary_largest_", "iwae_binary")):
        for statistic in ("trace", "update"):
            gaps = []
            for key, one in figures.items():
                if key.startswith(start) and key.endswith(f"_{statistic}"):
                    gaps.append(one["value"])
            largest = results.figure(max(gaps), "relative", n=len(gaps))
            figures[f"{prefix}{statistic}_difference"] = largest


def main() -> None:
    parser = common.parser(__doc__)
    parser.add_argument("--steps", type=int, default=50, help="length of a loss trace")
    parser.add_argument("--data_dir", default="", help="where MNIST is; digits without it")
    args = parser.parse_args()
    os.environ.setdefault("JAX_PLATFORMS", "cpu")
    import jax

    jax.config.update("jax_num_cpu_devices", 8)
    recorder = common.Recorder("modes", args.out)
    figures = recorder.earlier()
    for name in OBJECTIVES:
        measure(name, args, recorder, figures)
    add_largest(figures)
    dataset = "mnist" if args.data_dir else "digits"
    recorder.write(f"{dataset}; benchmarks/parity.py", figures)


if __name__ == "__main__":
    common.script(main)
