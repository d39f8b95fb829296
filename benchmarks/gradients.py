"""Variance and signal-to-noise ratio of gradient estimators on a run's checkpoint.

python -m benchmarks.gradients --workdir=RUN --out=results/gradients.json

The table is that of ``vae_jax.evaluate.gradients``; its picture is copied beside the figures.
"""

import json
import os
import shutil

from benchmarks import common
from vae_jax.evaluate import gradients
from vae_jax.tools import results


def read_json(workdir: str, name: str) -> list | dict:
    with open(os.path.join(workdir, name)) as file:
        return json.load(file)


def measure(workdir: str, data_dir: str) -> common.FIGURES:
    """Figures ESTIMATOR_SAMPLES_SIDE_STATISTIC of the two sides, inference and generative."""
    flags = [f"--workdir={workdir}", f"--data_dir={data_dir}", "--samples=1,5,50"]
    gradients.run(["gradients", *flags])
    figures = {}
    for row in read_json(workdir, "gradients.json"):
        for side in ("inference", "generative"):
            for statistic in ("variance", "snr"):
                key = f"{row['estimator']}_{row['samples']}_{side}_{statistic}"
                figures[key] = results.figure(row[side][statistic], "", n=row["repeats"])
    return figures


def main() -> None:
    parser = common.parser(__doc__)
    parser.add_argument("--workdir", required=True, help="a finished run with a decoder")
    parser.add_argument("--data_dir", default="", help="where the data is, if it moved")
    args = parser.parse_args()
    recorder = common.Recorder("gradients", args.out)
    figures = measure(args.workdir, args.data_dir)
    shutil.copy(os.path.join(args.workdir, "gradients.png"), recorder.picture())
    recorder.write(read_json(args.workdir, "config.json"), figures)


if __name__ == "__main__":
    common.script(main)
