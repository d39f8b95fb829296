"""Parts that the measurements of this folder share: arguments, files of results, IW-K, pictures."""

import argparse
import json
import os
import resource
import shlex
import sys
import time
from collections.abc import Callable
from typing import Any

import numpy as np

FIGURES = dict[str, dict[str, Any]]  # key -> results.figure


def parser(doc: str) -> argparse.ArgumentParser:
    """A parser with ``--out``, described by the first line of a module's docstring."""
    arguments = argparse.ArgumentParser(description=doc.splitlines()[0])
    arguments.add_argument("--out", required=True, help="write the figures to this NAME.json")
    return arguments


def script(main: Callable[[], None]) -> None:
    """Run a measurement's ``main``: a UserError is one line on stderr and exit code 2."""
    from vae_jax.config import UserError

    try:
        main()
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(2)


class Recorder:
    """Writes the results of one measurement, as often as it likes, so that none is lost.

    Args:
      module: name of the module under ``benchmarks/``, for the command that the file states.
      out: path of the file of results.
    """

    def __init__(self, module: str, out: str):
        from vae_jax.tools import results

        results.check(out)  # before the work
        self.out = out
        self.began = time.time()
        self.command = shlex.join(["python", "-m", f"benchmarks.{module}", *sys.argv[1:]])

    def write(
        self, config: str | dict | None, figures: FIGURES, seeds: int | list[int] = 0
    ) -> None:
        from vae_jax.tools import results

        results.write(
            self.out,
            command=self.command,
            config=config,
            seed=seeds,
            seconds=time.time() - self.began,
            figures=figures,
        )

    def earlier(self) -> FIGURES:
        """The figures that an interrupted measurement of this commit wrote; {} where none did."""
        from vae_jax.tools import results

        if not os.path.exists(self.out):
            return {}
        with open(self.out) as file:
            content = json.load(file)
        return content["figures"] if content["commit"] == results.commit() else {}

    def picture(self) -> str:
        """Path of the picture beside the file of results."""
        return os.path.splitext(self.out)[0] + ".png"


def strips(path: str, rows: list[tuple[str, np.ndarray]]) -> None:
    """Write a picture of labelled rows, each of up to 16 grey images [N, H, W, 1] in [0, 1]."""
    from PIL import Image, ImageDraw

    size = 56
    left = 190
    page = Image.new("L", (left + 16 * size, len(rows) * (size + 6)), 255)
    for i, (label, images) in enumerate(rows):
        top = i * (size + 6)
        ImageDraw.Draw(page).text((4, top + size // 2 - 6), label, fill=0)
        for j, image in enumerate(images):
            grey = (np.clip(image[..., 0], 0, 1) * 255).astype(np.uint8)
            page.paste(Image.fromarray(grey).resize((size, size)), (left + j * size, top))
    page.save(path, optimize=True)


def importance_bound(workdir: str, k: int, images: int, data_dir: str) -> dict[str, Any]:
    """IW-K of the first test images by evaluation's own code, compilation included.

    Args:
      workdir: folder of a finished run with a decoder; its best checkpoint is read.
      k: samples of an image.
      images: number of test images, at most.
      data_dir: where the data is, or '' for the config's own.
    Returns:
      config, n (images), train (size of the training set), mean and sd in nats, seconds, mib (the
      peak of this process so far), flops (XLA's, of decoding one z), devices.
    """
    import jax
    import jax.numpy as jnp

    from vae_jax import config as config_lib
    from vae_jax.data import Split
    from vae_jax.evaluate import likelihood
    from vae_jax.evaluate.subject import Subject
    from vae_jax.train import run, step

    s, state, _ = run.restore(workdir, data_dir=data_dir)
    params = step.averaged(state)
    key = step.stream(s.c.seed, "test")
    split = Split(s.dataset.test.image[:images], None)
    began = time.perf_counter()
    subject = Subject.of(s, params)
    bounds = likelihood.log_likelihood(subject, split, key, k=k)
    iw_N = bounds["iw"]
    seconds = time.perf_counter() - began
    per_mib = 2**10 if sys.platform == "linux" else 2**20
    decode = jax.jit(s.model.decode).lower(params, jnp.zeros((1, s.model.latent)))
    return {
        "config": config_lib.to_json(s.c),
        "n": len(iw_N),
        "train": len(s.dataset.train.image),
        "mean": iw_N.mean(),
        "sd": iw_N.std(ddof=1),
        "seconds": seconds,
        "mib": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / per_mib,
        "flops": decode.cost_analysis()["flops"],
        "devices": s.mesh.size,
    }
