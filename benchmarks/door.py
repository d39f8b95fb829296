"""What a newcomer meets: silent seconds of the commands, the report's size, pixels in the browser.

python -m benchmarks.door --data_dir=~/data --out=results/door.json

Trains configs/digits.py and some steps of configs/vae_mnist.py. Needs Chromium and MNIST.
"""

import json
import os
import re
import subprocess
import sys
import tempfile
import time
from typing import Any

import numpy as np

from benchmarks import common
from benchmarks.browser import Browser
from benchmarks.startup import ROOT, environment
from vae_jax.config import UserError
from vae_jax.tools import results

STEPS = 1000  # of MNIST's run, with a validation after every half of them
CODES = 64  # that the browser decodes
TASKS = "classification,recognition,robustness"


def longest_silence(words: list[str], env: dict[str, str]) -> float:
    """The most seconds in which a command wrote nothing to its pipe, start and end included.

    Raises:
      UserError: the command failed; its last line.
    """
    command = [sys.executable, *words]
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT}
    process = subprocess.Popen(command, cwd=ROOT, env=env, **pipes)
    last = time.perf_counter()
    longest = 0.0
    text = b""
    while True:
        part = os.read(process.stdout.fileno(), 1 << 16)
        now = time.perf_counter()
        longest = max(longest, now - last)
        last = now
        if not part:
            break
        text += part
    if process.wait():
        raise UserError(text.decode(errors="replace").strip().splitlines()[-1])
    return longest


def page_data(path: str) -> dict[str, Any]:
    """What the page's script reads; {} of a page without it."""
    with open(path, encoding="utf-8") as file:
        match = re.search(r'id="explorer-data">(.*?)</script>', file.read(), re.DOTALL)
    return json.loads(match[1]) if match else {}


def pixel_difference(workdir: str) -> float:
    """The largest difference of a pixel between the page's decoder and Python's, of [0, 1].

    Of the codes of the first training images; the page rounds its weights to half precision.

    Raises:
      UserError: the page has no decoder.
    """
    from vae_jax import data
    from vae_jax.tools import library

    run = library.load_run(workdir)
    image = data.load(run.config.data).train.image[:CODES]
    z = run.encode(np.asarray(image))
    python = np.clip(run.decode(z), 0, 1)
    path = os.path.join(workdir, "report", "index.html")
    if "decoder" not in page_data(path):
        raise UserError(f"{path}: has no decoder; want a smaller model")
    with Browser() as browser:
        browser.open(f"file://{os.path.abspath(path)}")
        script = browser.evaluate(f"{z.tolist()}.map((one) => [...decode(one)])")
    return float(np.abs(np.reshape(script, python.shape) - python).max())


def measure(folder: str, data_dir: str) -> common.FIGURES:
    """Figures of two runs that are trained into a folder, with nothing compiled before."""
    env = environment(os.path.join(folder, "cache"))
    digits = f"--workdir={folder}/digits"
    mnist = f"--workdir={folder}/mnist"
    commands = {
        "train": ["train.py", "--config=configs/digits.py", digits],
        "eval": ["eval.py", digits],
        "eval_tasks": ["eval.py", digits, f"--tasks={TASKS}"],
    }
    figures = {}
    for name, words in commands.items():
        figures[f"silence_{name}"] = results.figure(longest_silence(words, env), "s")
    difference = pixel_difference(f"{folder}/digits")
    figures["pixel_difference"] = results.figure(255 * difference, "of 255", n=CODES)
    fields = {"steps": STEPS, "eval.every": STEPS // 2, "log_every": STEPS // 2, "eval.iw_k": 1}
    words = ["train.py", "--config=configs/vae_mnist.py", f"--data_dir={data_dir}", mnist]
    words += [f"--config.{field}={value}" for field, value in fields.items()]
    longest_silence(words, env)
    path = os.path.join(folder, "mnist", "report", "index.html")
    packed = page_data(path)
    figures["report"] = results.figure(os.path.getsize(path) / 2**20, "MiB")
    figures["report_points"] = results.figure(packed["count"], "")
    return figures


def main() -> None:
    parser = common.parser(__doc__)
    parser.add_argument("--data_dir", default="", help="where TFDS data is")
    args = parser.parse_args()
    recorder = common.Recorder("door", args.out)
    with tempfile.TemporaryDirectory(prefix="vae_jax_door_") as folder:
        figures = measure(folder, os.path.expanduser(args.data_dir))
    recorder.write("configs/digits.py", figures)


if __name__ == "__main__":
    common.script(main)
