"""Time the compiled step at this commit and at an earlier one, in turns on one machine.

python -m benchmarks.commits --before=COMMIT --data_dir=~/data --out=results/commits.json

Each commit has a process in a working tree of its own. Both compile a row, then take turns: a
window of one, a window of the other, the first of a pair changing from round to round.
"""

import json
import os
import subprocess
import sys
import tempfile

import numpy as np

from benchmarks import common
from vae_jax.tools import results

WORKER = """
import json, sys
sys.path.insert(0, '.')
from vae_jax import config
try:
    from benchmarks import cells
except ImportError:  # where this module was before it moved
    from vae_jax.benchmark import cells
path, pairs, data_dir, seconds = json.loads(sys.argv[1])
(cell,) = cells.cells(lambda: config.load(path), pairs, [[]], data_dir)
cells.build(cell)
lane = cell.lanes['ours']
print(cells.calls_for(lane, seconds), flush=True)
for line in sys.stdin:
    print(cells.window(lane, int(line)), flush=True)
"""

MLP = "configs/mnist_dynamic.py"
ROWS = {  # name -> config, overrides: the rows of the table with PyTorch's step
    "MLP, batch 20": (MLP, {"batch": 20}),
    "MLP, batch 128": (MLP, {"batch": 128}),
    "convolutions 28x28, batch 128": ("configs/mnist.py", {"batch": 128, "data.shift": 0}),
    "convolutions 32x32, batch 128": ("configs/seed_conv.py", {"batch": 128}),
    "IWAE-50, batch 20": (MLP, {"objective.name": "iwae", "objective.samples": 50, "batch": 20}),
    "M2": ("configs/m2_mnist.py", {}),
    "hierarchy 32x32": (
        "configs/cifar10_vdvae_20k.py",
        {"decoder.scan": False, "data.flip": False},
    ),
}


class Worker:
    """A process that holds one commit's compiled step; ``calls`` of it last ``seconds``, about."""

    def __init__(self, tree: str, row: tuple[str, dict], data_dir: str, seconds: float):
        path, fields = row
        pairs = [(field, str(value)) for field, value in fields.items()]
        words = json.dumps([path, pairs, data_dir, seconds])
        self.process = subprocess.Popen(
            [sys.executable, "-c", WORKER, words],
            cwd=tree,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        self.calls = int(self.process.stdout.readline())

    def window(self) -> float:
        """Milliseconds of a step, over one window."""
        print(self.calls, file=self.process.stdin, flush=True)
        return 1000 * float(self.process.stdout.readline())

    def close(self) -> None:
        self.process.stdin.close()
        self.process.wait()


def compare(workers: dict[str, Worker], rounds: int) -> common.FIGURES:
    """Median time of a step at each commit; the median and spread of the rounds' ratios."""
    times = {name: [] for name in workers}
    for number in range(rounds):
        order = list(workers)
        if number % 2:
            order.reverse()
        for name in order:
            times[name].append(workers[name].window())
    ratios = np.array(times["now"]) / np.array(times["before"])
    spread = float(np.std(ratios, ddof=1)) if rounds > 1 else None
    figures = {"ratio": results.figure(float(np.median(ratios)), "now / before", spread, rounds)}
    for name, values in times.items():
        figures[f"{name}_ms"] = results.figure(float(np.median(values)), "ms", n=rounds)
    return figures


def main() -> None:
    arguments = common.parser(__doc__)
    arguments.add_argument("--before", required=True, help="the earlier commit")
    arguments.add_argument("--data_dir", default="~/data", help="where the data sets are")
    arguments.add_argument("--rounds", type=int, default=20)
    arguments.add_argument("--seconds", type=float, default=0.5, help="length of a window, about")
    arguments.add_argument("--rows", default="", help="a part of the names of the rows to run")
    args = arguments.parse_args()
    recorder = common.Recorder("commits", args.out)
    figures = recorder.earlier()
    data_dir = os.path.abspath(os.path.expanduser(args.data_dir))
    with tempfile.TemporaryDirectory() as folder:
        before = os.path.join(folder, "before")
        subprocess.run(["git", "worktree", "add", "--detach", before, args.before], check=True)
        try:
            for name, row in ROWS.items():
                if args.rows not in name:
                    continue
                trees = {"before": before, "now": os.getcwd()}
                workers = {}
                for commit, tree in trees.items():
                    workers[commit] = Worker(tree, row, data_dir, args.seconds)
                found = compare(workers, args.rounds)
                for worker in workers.values():
                    worker.close()
                figures |= {f"{name}.{key}": value for key, value in found.items()}
                print(name, {key: value["value"] for key, value in found.items()}, flush=True)
                recorder.write(None, figures)
        finally:
            subprocess.run(["git", "worktree", "remove", "--force", before], check=True)


if __name__ == "__main__":
    common.script(main)
