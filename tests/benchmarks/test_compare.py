"""Verdicts against an older file, and the published peaks."""

import json
import pathlib

import jax
import pytest

from benchmarks import machine, present
from tests.benchmarks.tiny import ROOT
from vae_jax.config import UserError
from vae_jax.tools import results


def test_another_config_or_device_is_no_older_file(tmp_path: pathlib.Path) -> None:
    page = "configs/digits.py"
    path = tmp_path / "old.json"
    results.write(
        path,
        command="python benchmark.py --config.batch=8",
        config=page,
        seed=None,
        seconds=1,
        figures=figures(a=(1, 1, 1)),
    )
    keys = ["a", "b"]
    pairs = [("batch", "8")]
    assert present.read_old(path, keys, f"{ROOT}/{page}", pairs)[1] == []
    with pytest.raises(UserError, match=r"is of config digits; want one of mnist$"):
        present.read_old(path, keys, "configs/mnist.py", pairs)
    assert present.read_old(path, keys, page, [("latent", "3")])[1] == [
        "batch: 8 then, as on the page now",
        "latent: as on the page then, 3 now",
    ]
    old = json.loads(path.read_text())
    path.write_text(json.dumps(old | {"versions": old["versions"] | {"jax": "0.1"}}))
    notes = present.read_old(path, keys, page, pairs)[1]
    assert notes == [f"jax 0.1 then, {jax.__version__} now"]
    path.write_text(json.dumps(old | {"device": "8 x NVIDIA H100"}))
    with pytest.raises(
        UserError, match="was measured on 8 x NVIDIA H100; want one of this device, "
    ):
        present.read_old(path, keys, page, pairs)


def figures(**cells: tuple[float, float, float] | None) -> dict[str, dict]:
    """{cell: (p10, median, p90) or None} as figures of results/."""
    values = {}
    for cell, times in cells.items():
        values[f"{cell}.step_ms"] = results.figure(None, "ms")
        if times:
            for key, time in zip(("p10_ms", "step_ms", "p90_ms"), times, strict=True):
                values[f"{cell}.{key}"] = results.figure(time, "ms")
    return values


@pytest.mark.parametrize(
    ("old", "new", "verdict"),
    [
        ((1.0, 1.1, 1.2), (1.3, 1.4, 1.5), "slower"),
        ((1.3, 1.4, 1.5), (1.0, 1.1, 1.2), "faster"),
        ((1.0, 1.1, 1.2), (1.1, 1.4, 1.5), "same"),  # the spreads meet
        ((1.0, 1.001, 1.002), (1.003, 1.004, 1.005), "same"),  # they do not, by next to nothing
        ((1.0, 1.1, 1.2), None, "fails"),
        (None, (1.0, 1.1, 1.2), "runs"),
        (None, None, "same"),
    ],
)
def test_verdicts(old: tuple | None, new: tuple | None, verdict: str) -> None:
    verdicts = present.compare(figures(a=old, b=(1, 1, 1)), figures(a=new, c=(1, 1, 1)))
    short = [(cell, v) for cell, v, _ in verdicts]
    assert short == [("a", verdict), ("b", "absent"), ("c", "new")]
    assert present.regressed(verdicts) == (verdict in ("slower", "fails"))


def test_published_peaks_are_those_of_the_device() -> None:
    assert machine.published("NVIDIA H100 80GB HBM3")["bfloat16"] == 989e12
    assert machine.published("NVIDIA H100 PCIe")["bfloat16"] == 756e12
    assert machine.published("TPU v5 lite")["bfloat16"] == 197e12
    assert machine.published("cpu") is None
