"""Run one command of this project, and publish the numbers of the JSON file that it writes.

    python -m benchmarks.publish --file=runs/mnist/ood_benchmark.json --out=results/NAME.json \
        -- -m vae_jax.evaluate.ood_benchmark --workdir=runs/mnist

The words after ``--`` are a script or ``-m MODULE``, and its flags. Every number of the file is a
figure, named by the way to it (``scores.iw.sets.mnist.auroc``), or those that match ``--figures``.
For the mean over several seeds: ``benchmarks.seeds``.
"""

import json
import os
import sys

from benchmarks import common, seeds


def main() -> None:
    arguments = common.parser(__doc__)
    arguments.add_argument("--file", required=True, help="that the command writes")
    arguments.add_argument("--figures", default="*", help="patterns of names, with commas")
    arguments.add_argument("command", nargs="+", help="a script or -m MODULE, and its flags")
    args = arguments.parse_args()
    recorder = common.Recorder("publish", args.out)
    before = os.stat(args.file).st_mtime_ns if os.path.exists(args.file) else None
    seeds.run(args.command)
    if not os.path.exists(args.file) or os.stat(args.file).st_mtime_ns == before:
        sys.exit(f"file={args.file}: the command did not write it; want the file that it writes")
    with open(args.file) as file:
        found = seeds.numbers(json.load(file))
    from vae_jax.tools import results

    patterns = args.figures.split(",")
    chosen = {
        key: results.figure(value, "")
        for key, value in found.items()
        if seeds.wanted(key, patterns)
    }
    if not chosen:
        sys.exit(f"figures={args.figures}: no number of {args.file} has such a name")
    recorder.write(None, chosen)


if __name__ == "__main__":
    common.script(main)
