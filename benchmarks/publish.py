"""Run one command of this project, and publish the numbers of the JSON file that it writes.

    python -m benchmarks.publish --file=runs/mnist/ood_benchmark.json --out=results/NAME.json \
        -- -m vae_jax.evaluate.ood_benchmark --workdir=runs/mnist

The words after ``--`` are a script or ``-m MODULE``, and its flags. Every number of the file is a
figure, named by the way to it (``scores.iw.sets.mnist.auroc``), or those that match ``--figures``.
For the mean over several seeds: ``benchmarks.seeds``.
"""

from benchmarks import common, seeds


def main() -> None:
    arguments = common.parser(__doc__)
    arguments.add_argument("--file", required=True, help="that the command writes")
    arguments.add_argument("--figures", default="*", help="patterns of names, with commas")
    arguments.add_argument("command", nargs="+", help="a script or -m MODULE, and its flags")
    args = arguments.parse_args()
    recorder = common.Recorder("publish", args.out)
    seeds.run_and_write(args.command, args.file)
    from vae_jax.tools import results

    found = seeds.read(args.file, args.figures.split(","))
    recorder.write(None, {key: results.figure(value, "") for key, value in found.items()})


if __name__ == "__main__":
    common.script(main)
