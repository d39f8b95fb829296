"""Throughput of a detector's compiled training step, beside the same net in PyTorch.

python -m benchmarks.detection --data_dir=~/data --out=results/detection_speed.json

The config is ``configs/detect_mnist.py``: convolutional encoder and head, the loss of
``objectives.detection``, AdamW, a moving average, scenes on the device. The peer has our
parameters, and must agree in the loss and every gradient before anything is timed. Windows of ours
and of each form of the peer take turns. Parameters that the loss does not reach (the dense layers
of the encoder and the posterior) are updated by ours; the peer does not have them.
"""

import time
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from ml_collections import ConfigDict

from benchmarks import cells, common
from vae_jax import config as config_lib
from vae_jax import data, models
from vae_jax.config import UserError
from vae_jax.mesh import rules
from vae_jax.objectives import OBJECTIVES
from vae_jax.tools import results
from vae_jax.train import program

AGREED = 16  # scenes of the batch on which both must agree


def scenes_batch(dataset: data.Dataset, index: np.ndarray) -> dict[str, jax.Array]:
    """The training scenes with these numbers as an objective sees them."""
    image = jnp.asarray(dataset.train.image[index], jnp.float32) / (dataset.levels - 1)
    return {"image": image, "objects": jnp.asarray(dataset.train.objects[index])}


def agreement(c: ConfigDict, dataset: data.Dataset, params: dict, peer: Any) -> dict[str, float]:
    """The relative differences of the peer's loss and gradients from ours.

    Raises:
      UserError: one of them is larger than ``cells.AGREE``.
    """
    model = models.build_for(c, dataset)
    options = {name: value for name, value in c.objective.items() if name != "name"}
    index = np.arange(min(AGREED, len(dataset.train.image)))
    batch = scenes_batch(dataset, index)

    def loss(params: dict) -> jax.Array:
        terms = OBJECTIVES["detection"](model, params, batch, None, **options)
        return terms.loss.mean()

    with jax.default_matmul_precision("highest"):
        value, gradients = program.simple(jax.value_and_grad(loss))(params)
    theirs, their_gradients = peer.loss_and_gradients(index)
    gaps = {"loss": abs(theirs - float(value)) / abs(float(value))}
    ours = peer.ours(jax.tree.map(np.asarray, gradients))
    for (path, _), a, b in zip(peer.net.leaves, ours, their_gradients, strict=True):
        gaps[path] = float(np.linalg.norm(a - b) / max(np.linalg.norm(a), 1e-12))
    worst = max(gaps, key=gaps.get)
    if not gaps[worst] <= cells.AGREE:
        raise UserError(
            f"peer: the peer is another function: {worst} differs by {gaps[worst]:.1e}; "
            f"want {cells.AGREE}"
        )
    return gaps


def our_step(c: ConfigDict, dataset: data.Dataset) -> tuple[Callable[[], None], dict]:
    """(a call of ``steps_per_call`` updates that waits for them, the parameters at the start)."""
    mesh = rules.make_mesh(c.mesh)
    model = models.build_for(c, dataset)
    state, places = program.init(c, model, mesh, dataset)
    params = jax.tree.map(np.asarray, state.params)
    run = program.training(c, model, mesh, dataset, state, places)
    last = [state]

    def call() -> None:
        last[0], metrics = run.run(last[0], run.source, run.key)
        metrics.block_until_ready()

    return call, params


def images_per_s(call: Callable[[], None], images: int, seconds: float) -> float:
    """Training images a second over one window of calls."""
    calls = 0
    began = time.perf_counter()
    while time.perf_counter() - began < seconds:
        call()
        calls += 1
    return calls * images / (time.perf_counter() - began)


def compare(
    lanes: dict[str, tuple[Callable[[], None], int]], rounds: int, seconds: float
) -> common.FIGURES:
    """Median images/s of each lane, and ours over the fastest peer, round by round.

    A lane is (a call, training images in it); the first is ours.
    """
    rates = {name: [] for name in lanes}
    for number in range(rounds):
        order = list(lanes)
        if number % 2:
            order.reverse()
        for name in order:
            rates[name].append(images_per_s(*lanes[name], seconds))
    ours, *peers = lanes
    figures = {}
    for name, values in rates.items():
        spread = float(np.std(values, ddof=1))
        median = float(np.median(values))
        figures[f"{name}_images_per_s"] = results.figure(median, "images / s", spread, rounds)
    if peers:
        best = max(peers, key=lambda name: np.median(rates[name]))
        ratios = np.array(rates[ours]) / np.array(rates[best])
        spread = float(np.std(ratios, ddof=1))
        figures["speed"] = results.figure(float(np.median(ratios)), "ours / torch", spread, rounds)
    return figures


def main() -> None:
    arguments = common.parser(__doc__)
    arguments.add_argument("--data_dir", default="", help="where TFDS data is")
    arguments.add_argument("--rounds", type=int, default=10)
    arguments.add_argument("--seconds", type=float, default=2.0, help="length of a window")
    args = arguments.parse_args()
    from benchmarks.peers import torch_detector

    recorder = common.Recorder("detection", args.out)
    c = config_lib.load("configs/detect_mnist.py")
    c.data.dir = args.data_dir
    c.data.name = "scenes:mnist+boxes+train=2000+validation=100+test=100"
    dataset = data.load(c.data)
    call, params = our_step(c, dataset)
    peer = torch_detector.Peer(c, dataset, params)
    gaps = agreement(c, dataset, params, peer)
    print(f"agree: {max(gaps.values()):.1e} at most")
    lanes = {"ours": (call, c.batch * c.steps_per_call)}
    call()
    for name, make in peer.forms().items():
        try:
            lanes[name] = (make(), c.batch)
        except Exception as error:  # its compiler may fail in any way
            print(f"without {name}: {cells.line(error)}")
    figures = compare(lanes, args.rounds, args.seconds)
    figures["largest_gap"] = results.figure(max(gaps.values()), "")
    print({name: round(one["value"], 3) for name, one in figures.items()})
    recorder.write("configs/detect_mnist.py", figures)


if __name__ == "__main__":
    common.script(main)
