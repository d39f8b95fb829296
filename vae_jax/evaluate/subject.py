"""What an evaluation looks at, and how a metric says what it is."""

import dataclasses
from collections.abc import Callable, Mapping, Sequence

import jax
from ml_collections import ConfigDict

from vae_jax import data
from vae_jax.config import UserError, own
from vae_jax.models import Model
from vae_jax.report.metrics import Metric, lookup, register
from vae_jax.train import run, step


@dataclasses.dataclass(frozen=True)
class Subject:
    """A trained model and all that evaluation may ask it about."""

    config: ConfigDict
    model: Model
    params: dict  # averaged, where training averages them
    data: data.Dataset
    mesh: jax.sharding.Mesh

    @property
    def levels(self) -> int:
        """Grey levels of the data."""
        return self.data.levels

    @classmethod
    def of(cls, setup: run.Setup, params: dict) -> "Subject":
        """The parts that a run's config builds, with these parameters."""
        return cls(setup.c, setup.model, params, setup.dataset, setup.mesh)


def restored(workdir: str, data_dir: str = "") -> Subject:
    """The best checkpoint of a run."""
    setup, state, _ = run.restore(workdir, data_dir=data_dir)
    return Subject.of(setup, step.averaged(state))


def metric(
    name: str, *, title: str = "", unit: str = "", better: str = "", meaning: str = ""
) -> Callable[[Callable[[Subject], float]], Callable[[Subject], float]]:
    """Decorator: the function computes the metric ``name`` of a :class:`Subject`.

    The report, the terminal and ``metrics.json`` show it under this name, with these words::

        @metric("mean_pixel", unit="%", meaning="Mean grey level of the test images.")
        def mean_pixel(subject):
            return subject.data.test.image.mean() / 255

    ``eval.py --metrics=my_metrics.py:mean_pixel`` computes it.
    """
    described = Metric(name, title or name.replace("_", " "), unit, better, meaning)

    def decorate(function: Callable[[Subject], float]) -> Callable[[Subject], float]:
        register(described)
        function.metric = described
        return function

    return decorate


def own_metrics(names: Sequence[str]) -> dict[str, Callable[[Subject], float]]:
    """{key: function} of the user's own metrics, each named ``file:function``.

    A function without the decorator has its own name as its key.

    Raises:
      UserError: there is no such function, or another metric has its key.
    """
    functions = {}
    for name in names:
        function = own("metrics", name)
        described = getattr(function, "metric", None)
        key = described.name if described else name.rpartition(":")[2]
        if key in functions or (described is None and lookup(key).meaning):
            raise UserError(f"metrics={name}: another metric has the name {key}; want another")
        functions[key] = function
    return functions


def compute(subject: Subject, names: Sequence[str]) -> Mapping[str, float]:
    """{key: value} of :func:`own_metrics`.

    Raises:
      UserError: a function returns no number.
    """
    values = {}
    for key, function in own_metrics(names).items():
        result = function(subject)
        try:
            values[key] = float(result)
        except (TypeError, ValueError):
            kind = type(result).__name__
            raise UserError(f"metrics={key}: returned {kind}; want one number") from None
    return values
