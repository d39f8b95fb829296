"""What an evaluation looks at, and how a metric says what it is."""

import dataclasses
from collections.abc import Callable, Mapping

import jax
from ml_collections import ConfigDict

from vae_jax import data
from vae_jax.config import UserError, own
from vae_jax.models import Model
from vae_jax.report.metrics import Metric, register


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


def metric(
    name: str, *, title: str = "", unit: str = "", better: str = "", meaning: str = ""
) -> Callable[[Callable[[Subject], float]], Callable[[Subject], float]]:
    """Decorator: the function computes the metric ``name`` of a :class:`Subject`.

    The report, the terminal and ``metrics.json`` show it under this name, with what is said of it here::

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


def compute(subject: Subject, names: list[str] | tuple[str, ...]) -> Mapping[str, float]:
    """{key: value} of the user's own metrics, each named ``file:function``.

    A function without the decorator has its own name as its key.

    Raises:
      UserError: there is no such function, or it returns no number.
    """
    values = {}
    for name in names:
        function = own("metrics", name)
        described = getattr(function, "metric", None)
        key = described.name if described else function.__name__
        result = function(subject)
        try:
            values[key] = float(result)
        except (TypeError, ValueError):
            kind = type(result).__name__
            raise UserError(f"metrics={name}: returned {kind}; want one number") from None
    return values
