"""Figures of the images of some runs (FID, KID, PSNR, ...) in the features of another run.

python -m benchmarks.quality --runs=RUN,RUN --features=RUN --out=results/quality.json

The figures are those of ``vae_jax.evaluate.quality``, each under the name of its run's folder, and
the ELBO of the test set from the run's metrics.json: what sharper images cost in nats, where the
runs have one likelihood. A picture of samples and reconstructions stands beside them.
"""

import json
import os
import pathlib

from benchmarks import common
from vae_jax import config as config_lib
from vae_jax.evaluate import quality
from vae_jax.tools import results

UNITS = {
    "sharpness_samples": "of the test images'",
    "sharpness_reconstructions": "of the test images'",
    "psnr": "dB",
}


def elbo_of(folder: str) -> common.FIGURES:
    """{"elbo_nats": the figure} that train.py or eval.py wrote at its end; {} where none did."""
    path = pathlib.Path(folder, "metrics.json")
    if not path.exists():
        return {}
    metrics = json.loads(path.read_text())
    if metrics.get("elbo_nats") is None:
        return {}
    return {"elbo_nats": results.figure(metrics["elbo_nats"], "nats / image", n=metrics["n"])}


def main() -> None:
    parser = common.parser(__doc__)
    parser.add_argument("--runs", required=True, help="folders of finished runs with a decoder")
    parser.add_argument("--features", required=True, help="a finished run that learnt labels")
    parser.add_argument("--images", type=int, default=10_000, help="test images, from the first")
    parser.add_argument("--data_dir", default="", help="where the data is, if it moved")
    args = parser.parse_args()
    recorder = common.Recorder("quality", args.out)
    configs = {}
    figures = {}
    rows = []
    for folder in args.runs.split(","):
        name = os.path.basename(folder.rstrip("/"))
        if name in configs:
            raise SystemExit(f"runs={args.runs}: {name} is there twice; want different names")
        measured = quality.measure(folder, args.features, args.images, data_dir=args.data_dir)
        c, metrics, images = measured
        configs[name] = config_lib.to_json(c)
        n = metrics.pop("n")
        for key, value in metrics.items():
            figures[f"{name}_{key}"] = results.figure(value, UNITS.get(key, ""), n=n)
        for key, figure in elbo_of(folder).items():
            figures[f"{name}_{key}"] = figure
        for kind in ("samples", "reconstructions"):
            rows.append((f"{kind}, {name}", images[kind][:16]))
    common.strips(recorder.picture(), [*rows, ("test images", images["test"][:16])])
    recorder.write(configs, figures)


if __name__ == "__main__":
    common.script(main)
