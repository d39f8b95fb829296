"""The PyTorch peer is the same function as ours, and its fastest form is the one that is timed."""

import functools
import pathlib
import sys
import time
from collections.abc import Callable

import jax
import numpy as np
import pytest
from ml_collections import ConfigDict
from scipy import stats

import benchmark
from benchmarks import cells
from vae_jax import cli, config, data, models
from vae_jax.config import UserError

ROOT = pathlib.Path(__file__).parents[2]
CONV = {
    "encoder.name": "conv",
    "decoder.name": "conv",
    "objective.samples": "2",
    "data.shift": "0",
}
VDVAE = {
    "data.name": "digits",
    "data.flip": "False",
    "likelihood.components": "2",
    "decoder.channels": "3",
    "encoder.widths": "(8, 12)",
    "encoder.depths": "(1, 2)",
    "decoder.widths": "(12, 8)",
    "decoder.depths": "(2, 1)",
    "decoder.scan": "False",
}
IWAE = {
    "objective.name": "iwae",
    "objective.samples": "3",
    "classifier.name": "none",
    "data.shift": "0",
}
M2 = {
    "data.name": "digits",
    "encoder.widths": "(32, 16)",
    "decoder.widths": "(16, 32)",
    "latent": "3",
}
FUNCTIONS = {
    "mlp": ("digits", {"data.shift": "0"}),
    "iwae": ("digits", IWAE),
    "conv": ("digits", CONV),
    "m2": ("m2_mnist", M2),
    "vdvae": ("cifar10_vdvae_20k", VDVAE),
}


def load(name: str, fields: dict[str, str]) -> tuple[ConfigDict, data.Dataset, dict]:
    """(config, data set, parameters); biases are off zero, which would hide a wrong order."""
    c = cli.apply(config.load(f"{ROOT}/configs/{name}.py"), list(fields.items()))
    dataset = data.load(c.data)
    params = models.build_for(c, dataset).init(jax.random.key(0))
    rng = np.random.default_rng(0)

    def perturb(a: jax.Array) -> np.ndarray:
        return np.float32(a + 0.05 * rng.standard_normal(a.shape))

    return c, dataset, jax.tree.map(perturb, params)


@pytest.mark.parametrize("name", FUNCTIONS)
def test_torch_computes_the_same_loss_and_gradients(name: str) -> None:
    pytest.importorskip("torch")
    peer = benchmark.find_peer("torch")
    c, dataset, params = load(*FUNCTIONS[name])
    gaps = cells.agreement(c, dataset, params, peer.Peer(c, dataset, params))
    assert max(gaps.values()) < cells.AGREE
    wrong = jax.tree.map(lambda a: 1.001 * a, params)
    with pytest.raises(UserError, match="the peer is another function"):
        cells.agreement(c, dataset, wrong, peer.Peer(c, dataset, params))


@pytest.mark.parametrize(
    ("name", "layouts"), [("mlp", [""]), ("conv", ["", "_channels_last"])], ids=["mlp", "conv"]
)
def test_the_peer_offers_eager_and_compiled_steps_in_every_layout(
    name: str, layouts: list[str]
) -> None:
    pytest.importorskip("torch")
    c, dataset, params = load(*FUNCTIONS[name])
    forms = benchmark.find_peer("torch").Peer(c, dataset, params).forms()
    eager = [f"torch_eager{layout}" for layout in layouts]
    assert set(forms) == {*eager, *(f"torch_compile{layout}" for layout in layouts)}
    for form in eager:
        call, wait = forms[form]()
        call()
        wait()


@pytest.mark.parametrize("name", ["conv", "vdvae"])
def test_the_memory_layout_changes_no_loss(name: str) -> None:
    torch = pytest.importorskip("torch")
    c, dataset, params = load(*FUNCTIONS[name])
    peer = benchmark.find_peer("torch").Peer(c, dataset, params)
    losses = []
    for layout in (torch.contiguous_format, torch.channels_last):
        net = peer.net_in(layout)
        kernels = [p for p in net.parameters() if p.ndim == 4]
        assert all(p.is_contiguous(memory_format=layout) for p in kernels)
        torch.manual_seed(0)
        batch = peer.batch(torch.arange(8), layout)
        assert batch[0].is_contiguous(memory_format=layout)
        losses.append(net(*batch).item())
    assert losses[1] == pytest.approx(losses[0], rel=1e-4)


def waiting(seconds: float) -> Callable[[], tuple]:
    """Makes a step that takes so many seconds."""
    sleep = functools.partial(time.sleep, seconds)
    return lambda: (sleep, lambda: None)


def broken() -> tuple:
    raise RuntimeError("no compiler")


def test_the_fastest_form_is_timed_and_the_row_says_which() -> None:
    forms = {
        "torch_eager": waiting(0.02),
        "torch_eager_channels_last": waiting(0.005),
        "torch_compile": waiting(0.03),
        "torch_compile_channels_last": broken,
    }
    cell = cells.Cell(ConfigDict(), {"key": "a", "fields": {}, "error": ""})
    cells.add_fastest(cell, forms)
    assert list(cell.lanes) == ["torch_eager_channels_last"] == [cell.row["peer_form"]]
    assert cell.row["peer_errors"] == {"torch_compile_channels_last": "RuntimeError: no compiler"}
    assert set(cell.row["peer_warmup_s"]) == set(forms) - {"torch_compile_channels_last"}
    assert cell.row["peer_warmup_s"]["torch_eager_channels_last"] == pytest.approx(0.005, rel=0.5)


def test_a_peer_without_a_form_that_runs_is_a_row_without_it() -> None:
    cell = cells.Cell(ConfigDict(), {"key": "a", "fields": {}, "error": ""})
    cells.add_fastest(cell, {"torch_compile": broken})
    assert cell.lanes == {} and cell.row["peer_form"] is None


def test_a_peer_that_is_not_installed_is_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "torch", None)
    monkeypatch.delitem(sys.modules, "benchmarks.peers.torch_step", raising=False)
    message = r"peer=torch: torch is not installed; want: pip install '\.\[peers\]'"
    with pytest.raises(UserError, match=message):
        benchmark.run(["benchmark.py", "--peer=torch"])


SLOW_VDVAE = pytest.param("vdvae", marks=pytest.mark.slow)


@pytest.mark.parametrize("name", ["mlp", SLOW_VDVAE])
def test_a_peer_is_given_one_standard_normal_for_each_number_of_z(name: str) -> None:
    c, dataset, params = load(*FUNCTIONS[name])
    noises = []

    class Stops(Exception):
        pass

    class Peer:
        def loss_and_gradients(self, image, label, noise, labelled) -> None:
            noises.append(noise)
            raise Stops

    with pytest.raises(Stops):
        cells.agreement(c, dataset, params, Peer())
    latent = models.build_for(c, dataset).latent
    assert noises[0].shape[-1] == latent
    assert stats.kstest(noises[0].ravel(), "norm").pvalue > 1e-3
