"""Train a config with several seeds, run one command on each, publish the mean of its figures.

    python -m benchmarks.seeds --config=configs/air_digits.py --seeds=5 --workdir=runs/air \
        --then='eval.py --tasks=scenes' --figures='count_accuracy*,ap50*' --out=results/NAME.json

``--then`` is a script or ``-m MODULE`` that takes ``--workdir``; the numbers of the JSON file that
it leaves in a run's folder (``--file``) are the figures, those that match ``--figures``. Each has
its mean and standard deviation over all seeds, its median (``KEY.median``) and each seed's value
(``KEY.seed_K``): no seed is left out, and none is chosen. Further words (``--config.field=value``,
``--data_dir=DIR``) go to ``train.py``. A seed that was trained is not trained again, nor measured
again by the same command; the file of results is written after each seed.
"""

import fnmatch
import json
import os
import shlex
import statistics
import subprocess
import sys
from typing import Any

from benchmarks import common


def numbers(value: Any, name: str = "") -> dict[str, float]:
    """{path: number} of the numbers in what a JSON file holds; paths are joined by points."""
    if isinstance(value, bool) or value is None or isinstance(value, str):
        return {}
    if isinstance(value, int | float):
        return {name: float(value)}
    pairs = value.items() if isinstance(value, dict) else enumerate(value)
    flat = {}
    for key, inner in pairs:
        flat |= numbers(inner, f"{name}.{key}" if name else str(key))
    return flat


def summary(rows: dict[int, dict[str, float]]) -> common.FIGURES:
    """Mean, standard deviation, median and each seed's value of what every seed has."""
    from vae_jax.tools import results

    n = len(rows)
    figures = {}
    shared = set.intersection(*(set(row) for row in rows.values()))
    for key in sorted(shared):
        values = [row[key] for row in rows.values()]
        spread = statistics.stdev(values) if n > 1 else None
        figures[key] = results.figure(statistics.fmean(values), "", spread, n)
        figures[f"{key}.median"] = results.figure(statistics.median(values), "", n=n)
        for seed, row in rows.items():
            figures[f"{key}.seed_{seed}"] = results.figure(row[key], "")
    return figures


def wanted(key: str, patterns: list[str]) -> bool:
    """Whether one of the patterns (``count_*``) is that of a name."""
    return any(fnmatch.fnmatchcase(key, pattern) for pattern in patterns)


def read(path: str, patterns: list[str]) -> dict[str, float]:
    """The numbers of a JSON file whose names match.

    Raises:
      UserError: there is no such file, or it has no such number.
    """
    from vae_jax.config import UserError

    try:
        with open(path) as file:
            found = numbers(json.load(file))
    except (OSError, ValueError) as error:
        raise UserError(f"file={path}: {error}; want the JSON file that was written") from None
    chosen = {key: value for key, value in found.items() if wanted(key, patterns)}
    if not chosen:
        raise UserError(f"figures={','.join(patterns)}: {path} has no number of such a name")
    return chosen


def stamp(path: str) -> int | None:
    """When a file was written; None where it is not."""
    return os.stat(path).st_mtime_ns if os.path.exists(path) else None


def run_and_write(words: list[str], path: str) -> None:
    """:func:`run`; an error where it did not write the file."""
    from vae_jax.config import UserError

    before = stamp(path)
    run(words)
    if stamp(path) in (before, None):
        raise UserError(f"file={path}: the command did not write it; want the file that it writes")


def run(words: list[str]) -> None:
    """A command of this project by this interpreter; where it fails, its exit code is ours."""
    done = subprocess.run([sys.executable, *words])
    if done.returncode:
        sys.exit(done.returncode)


def measured(workdir: str, train: list[str]) -> dict[str, Any] | None:
    """{"train": words, "then": words} of the seed that is in a folder, None where there is none.

    Raises:
      UserError: it was trained by other words.
    """
    from vae_jax.config import UserError

    path = os.path.join(workdir, "measured.json")
    if not os.path.exists(path):
        return None
    with open(path) as file:
        done = json.load(file)
    if done["train"] != train:
        said = shlex.join(done["train"])
        raise UserError(f"workdir={workdir}: was trained by {said}; want another --workdir")
    return done


def main() -> None:
    arguments = common.parser(__doc__)
    arguments.add_argument("--config", required=True)
    arguments.add_argument("--seeds", type=int, default=5)
    arguments.add_argument("--workdir", required=True, help="each seed's run is a folder below it")
    arguments.add_argument("--then", default="", help="a command that takes --workdir")
    arguments.add_argument("--file", default="metrics.json", help="of a run's folder")
    arguments.add_argument("--figures", default="*", help="patterns of names, with commas")
    args, rest = arguments.parse_known_args()
    if args.seeds < 1:
        arguments.error(f"seeds={args.seeds}: want 1 or more")
    recorder = common.Recorder("seeds", args.out)
    rows = {}
    for seed in range(args.seeds):
        workdir = os.path.join(args.workdir, f"seed_{seed}")
        path = os.path.join(workdir, args.file)
        train = [f"--config={args.config}", f"--config.seed={seed}", *rest]
        asked = {"train": train, "then": args.then}
        done = measured(workdir, train)
        if done is None:
            run(["train.py", *train, f"--workdir={workdir}"])
        if done != asked:
            if args.then:
                run_and_write([*shlex.split(args.then), f"--workdir={workdir}"], path)
            with open(os.path.join(workdir, "measured.json"), "w") as file:
                json.dump(asked, file)
        rows[seed] = read(path, args.figures.split(","))
        recorder.write(args.config, summary(rows), seeds=list(rows))


if __name__ == "__main__":
    common.script(main)
