"""The programs of ``python -m vae_jax.tools.export``, with the methods of a run.

run = vae_jax.load("runs/digits/export")
p = run.classify(images)
"""

import dataclasses
import os
import pathlib
from collections.abc import Callable, Mapping
from typing import Any, NoReturn

import numpy as np

from vae_jax.config import UserError
from vae_jax.data import predict
from vae_jax.tools import inputs
from vae_jax.tools.inputs import Images

SUFFIX = ".jaxexport"


@dataclasses.dataclass(frozen=True)
class Exported:
    """The programs in a folder of exports, or one of them.

    Images are those of :class:`vae_jax.tools.library.Run`. A method whose program is not there
    raises :class:`UserError`, as do those of a run that no export has: ``decode``, ``log_prob``,
    ``traverse``, ``evaluate``, ``model``, ``params`` and ``config``.

    Args:
      workdir: the folder or the file.
      programs: {'classifier', 'encoder' or 'sampler': (its program, its metadata)}.
    """

    workdir: str
    programs: Mapping[str, tuple[Callable[..., Any], Mapping[str, Any]]]

    @property
    def metadata(self) -> Mapping[str, Any]:
        """What the first program says of itself: ``image``, ``classes``, ``checkpoint``, …"""
        return next(iter(self.programs.values()))[1]

    @property
    def classes(self) -> tuple[str, ...]:
        """The names of the Y classes; () where the data has no labels."""
        return tuple(self.metadata["classes"])

    def encode(self, images: Images) -> np.ndarray:
        """The mean of q(z|x) of each image, float32 NxD; wants ``encoder``."""
        return self._of_images("encode", "encoder", images)["mu"]

    def classify(self, images: Images) -> np.ndarray:
        """p(y|x) of each image at the export's temperature, float32 NxY; wants ``classifier``.

        The temperature was fitted on validation labels, so that these probabilities are calibrated
        and those of a run are not.
        """
        return self._of_images("classify", "classifier", images)["probabilities"]

    def familiarity(self, images: Images) -> np.ndarray:
        """The share of the validation images that are at least as unusual, float64 N in [0, 1].

        See :func:`vae_jax.data.predict.familiarity`; wants ``classifier``.
        """
        scores = self._of_images("familiarity", "classifier", images)
        return predict.familiarity(scores, self.programs["classifier"][1]["familiarity"])

    def sample(self, n: int, seed: int = 0, labels: Any = None) -> np.ndarray:
        """Means of p(x|z) of ``n`` draws z ~ p(z), float32 nxHxWxC in [0, 1]; wants ``sampler``.

        Image i is a function of (seed, i), and another than that of a run. A model with labels
        draws class i mod Y, or ``labels``.
        """
        call, metadata = self._program("sample", "sampler")
        if n < 1:
            raise UserError(f"n={n}: want one image at least")
        seed_N = np.random.SeedSequence(seed).generate_state(n)
        arguments = [seed_N]
        if len(metadata["inputs"]) > 1:
            if labels is None:
                labels = np.arange(n) % len(self.classes)
            arguments.append(inputs.class_labels(labels, n, len(self.classes)))
        elif labels is not None:
            raise UserError("labels: the model has none; want labels=None")
        return _in_parts(call, arguments)["image"]

    def _program(self, method: str, what: str) -> tuple[Callable[..., Any], Mapping[str, Any]]:
        if what not in self.programs:
            there = ", ".join(self.programs)
            raise UserError(
                f"{method}: {self.workdir} has {there}; want --what={what} of vae_jax.tools.export"
            )
        return self.programs[what]

    def _of_images(self, method: str, what: str, images: Images) -> dict[str, np.ndarray]:
        call, metadata = self._program(method, what)
        shape = tuple(metadata["image"]["shape"])
        image_N = inputs.batch_of(images, metadata["image"]["levels"], shape)
        return _in_parts(call, [image_N])

    # --- what only a run has ---------------------------------------------------------------------

    def _refuse(self, name: str) -> NoReturn:
        raise UserError(f"{name}: {self.workdir} is an export and has none; want a run's folder")

    def decode(self, z: Any, labels: Any = None) -> np.ndarray:
        """Raises UserError."""
        self._refuse("decode")

    def log_prob(self, images: Images, k: int = 100) -> np.ndarray:
        """Raises UserError."""
        self._refuse("log_prob")

    def traverse(
        self, image: Images, dimensions: int = 10, columns: int = 7, span: float = 2.0
    ) -> np.ndarray:
        """Raises UserError."""
        self._refuse("traverse")

    def evaluate(self, **options: Any) -> dict[str, Any]:
        """Raises UserError."""
        self._refuse("evaluate")

    @property
    def model(self) -> NoReturn:
        """Raises UserError."""
        self._refuse("model")

    @property
    def params(self) -> NoReturn:
        """Raises UserError."""
        self._refuse("params")

    @property
    def config(self) -> NoReturn:
        """Raises UserError."""
        self._refuse("config")


def _in_parts(call: Callable[..., Any], arguments: list[np.ndarray]) -> dict[str, np.ndarray]:
    """{name: its rows}: a program of all rows, ``predict.BATCH`` at a time."""
    parts: dict[str, list[np.ndarray]] = {}
    for start in range(0, len(arguments[0]), predict.BATCH):
        rows = [argument[start : start + predict.BATCH] for argument in arguments]
        for name, value in call(*rows).items():
            parts.setdefault(name, []).append(np.asarray(value))
    return {name: np.concatenate(values) for name, values in parts.items()}


def is_export(path: str | os.PathLike[str]) -> bool:
    """Whether a path is an exported file, or a folder of them that is no run's."""
    place = pathlib.Path(path)
    if place.suffix == SUFFIX:
        return True
    return not (place / "config.json").exists() and any(place.glob(f"*{SUFFIX}"))


def load(path: str | os.PathLike[str]) -> Exported:
    """The :class:`Exported` of a file, or of all files in a folder.

    Raises:
      UserError: there is no such file, or one is damaged.
    """
    place = pathlib.Path(path)
    files = [place]
    if place.suffix != SUFFIX:
        files = sorted(place.glob(f"*{SUFFIX}"))
    programs = {}
    for file in files:
        try:
            call, metadata = predict.load(file)
        except predict.Refused as error:
            raise UserError(str(error)) from None
        programs[metadata["what"]] = (call, metadata)
    return Exported(os.fspath(path), programs)
