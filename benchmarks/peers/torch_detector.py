"""The training step of a detector that a user of PyTorch would write; see benchmarks.detection.

The convolutional encoder of a config, its dense head, the loss of ``objectives.detection`` and
Adam, with our parameters. Images are mirrored, as in :mod:`benchmarks.peers.torch_step`, so that an
odd kernel of stride 2 is padded as ours is; the head's cells are turned back before the loss.
"""

import copy
import functools
import os
from collections.abc import Callable

import numpy as np
import torch
from ml_collections import ConfigDict
from torch import nn
from torch.nn import functional as F

from benchmarks.peers.torch_step import ACTIVATIONS
from vae_jax.data import Dataset
from vae_jax.models.boxes import SMALLEST
from vae_jax.models.scenes import OBJECT_BIAS

Step = Callable[[], None]


def corners(boxes: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """(low, high) corners of boxes x, y, w, h."""
    return boxes[..., :2], boxes[..., :2] + boxes[..., 2:]


def generalised_iou(a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
    """As ``models.boxes.generalised_iou``."""
    low_a, high_a = corners(a)
    low_b, high_b = corners(b)
    common = (torch.minimum(high_a, high_b) - torch.maximum(low_a, low_b)).clamp(min=0).prod(-1)
    union = a[..., 2:].prod(-1) + b[..., 2:].prod(-1) - common
    hull = (torch.maximum(high_a, high_b) - torch.minimum(low_a, low_b)).prod(-1)
    hull = hull.clamp(min=SMALLEST**2)
    return common / union.clamp(min=SMALLEST**2) - (hull - union) / hull


def first_of_cell(cell_BxM: torch.Tensor, real_BxM: torch.Tensor) -> torch.Tensor:
    """Whether no real object before this one has its cell."""
    same_BxMxM = cell_BxM[:, :, None] == cell_BxM[:, None, :]
    count = cell_BxM.shape[1]
    earlier_MxM = torch.ones(count, count, dtype=torch.bool, device=cell_BxM.device).tril(-1)
    return ~(same_BxMxM & earlier_MxM & real_BxM[:, None, :]).any(-1)


class Net(nn.Module):
    """Encoder and head; ``leaves``: [(path in our parameters, parameter)] that the loss trains."""

    def __init__(self, c: ConfigDict, shape: tuple[int, ...]):
        super().__init__()
        self.c = c
        self.size = shape[0]
        self.grid = c.model.grid
        self.leaves = []
        self.activation = ACTIVATIONS[c.encoder.activation]
        channels = shape[2]
        self.encoder = nn.ModuleList()
        self.head = nn.ModuleList()
        kernel = c.encoder.kernel
        for i, (width, stride) in enumerate(zip(c.encoder.widths, c.encoder.strides, strict=True)):
            pad = -(-(kernel - stride) // 2)
            layer = nn.Conv2d(channels, width, kernel, stride, padding=pad)
            self._add(self.encoder, f"encoder/Conv_{i}", layer)
            channels = width
        for i, width in enumerate(c.model.widths):
            layer = nn.Conv2d(channels, width, 3, padding=1)
            self._add(self.head, f"detector/Conv_{i}", layer)
            channels = width
        last = nn.Conv2d(channels, 5 + c.model.classes, 1)
        self._add(self.head, f"detector/Conv_{len(c.model.widths)}", last)

    def _add(self, layers: nn.ModuleList, path: str, layer: nn.Conv2d) -> None:
        layers.append(layer)
        self.leaves.append((f"{path}/kernel", layer.weight))
        self.leaves.append((f"{path}/bias", layer.bias))

    def cells(self, x_BxCxHxW: torch.Tensor) -> torch.Tensor:
        """What the head says of each cell, B x cells x outputs."""
        h = x_BxCxHxW
        for i, layer in enumerate(self.encoder):
            h = layer(h)
            if i < len(self.encoder) - 1:
                h = self.activation(h)
        h = F.relu(h)
        for layer in self.head[:-1]:
            h = F.relu(layer(h))
        out = self.head[-1](h).flip(2, 3)
        return out.permute(0, 2, 3, 1).flatten(1, 2)

    def forward(self, x_BxCxHxW: torch.Tensor, objects_BxMx5: torch.Tensor) -> torch.Tensor:
        """The mean loss of a batch."""
        o = self.c.objective
        out = self.cells(x_BxCxHxW)
        side = self.size / self.grid
        target = objects_BxMx5[..., :4].float()
        label_BxM = objects_BxMx5[..., 4]
        centre = (target[..., :2] + target[..., 2:] / 2) / side
        place = centre.floor().clamp(0, self.grid - 1)
        cell_BxM = (place[..., 1] * self.grid + place[..., 0]).long()
        real_BxM = label_BxM >= 0
        real_BxM = real_BxM & first_of_cell(cell_BxM, real_BxM)
        every = torch.arange(self.grid**2, device=out.device)
        taken_BxG = ((cell_BxM[..., None] == every) & real_BxM[..., None]).any(1)
        sign = torch.where(taken_BxG, 1.0, -1.0)
        log_p = F.logsigmoid(sign * (out[..., 4] + OBJECT_BIAS))
        objectness = -((1 - log_p.exp()) ** o.focus * log_p).sum(-1)
        own = out.gather(1, cell_BxM[..., None].expand(-1, -1, out.shape[-1]))
        middle = (place + 0.5 + own[..., :2]) * side
        sides = own[..., 2:4].exp() * side
        boxes = torch.cat([middle - sides / 2, sides], -1)
        giou = generalised_iou(boxes, target)
        log_y = F.log_softmax(own[..., 5:], -1)
        ce = -log_y.gather(-1, label_BxM.clamp(min=0).long()[..., None])[..., 0]
        apart = torch.where(real_BxM, o.box * (1 - giou) + o.label * ce, 0.0).sum(-1)
        return (objectness + apart).mean()


def flatten(tree: dict, prefix: str = "") -> dict[str, np.ndarray]:
    """{'part/layer/kernel': leaf} of nested dictionaries."""
    flat = {}
    for name, value in tree.items():
        if isinstance(value, dict):
            flat |= flatten(value, f"{prefix}{name}/")
        else:
            flat[prefix + name] = np.asarray(value)
    return flat


def layout(leaf: np.ndarray) -> np.ndarray:
    """A kernel hxwxIxO as PyTorch keeps it, mirrored; a bias as it is."""
    if leaf.ndim != 4:
        return leaf
    return np.ascontiguousarray(leaf.transpose(3, 2, 0, 1)[:, :, ::-1, ::-1])


class Peer:
    """The detector of a config with our parameters, and its training step in each form."""

    def __init__(self, c: ConfigDict, dataset: Dataset, params: dict):
        torch.set_num_threads(os.cpu_count())
        self.c = c
        self.levels = dataset.levels
        self.device = "cuda" if torch.cuda.is_available() else "cpu"
        self.net = Net(c, dataset.shape).to(self.device)
        for (_, parameter), leaf in zip(self.net.leaves, self.ours(params), strict=True):
            with torch.no_grad():
                parameter.copy_(torch.from_numpy(leaf.copy()))
        self.image = torch.from_numpy(self.pixels(dataset.train.image)).to(self.device)
        self.objects = torch.from_numpy(np.array(dataset.train.objects)).to(self.device)

    def pixels(self, image_BxHxWxC: np.ndarray) -> np.ndarray:
        """Images as this net reads them."""
        return np.ascontiguousarray(image_BxHxWxC.transpose(0, 3, 1, 2)[:, :, ::-1, ::-1])

    def ours(self, tree: dict) -> list[np.ndarray]:
        """The leaves of one of our trees in the order and the layout of this net's."""
        flat = flatten(tree)
        return [layout(flat[path]) for path, _ in self.net.leaves]

    def loss_and_gradients(self, index: np.ndarray) -> tuple[float, list[np.ndarray]]:
        """Of the training scenes with these numbers, in float32."""
        rows = torch.from_numpy(index).to(self.device)
        loss = self.net(*self.batch(rows, torch.contiguous_format))
        loss.backward()
        gradients = [p.grad.cpu().numpy() for _, p in self.net.leaves]
        self.net.zero_grad(set_to_none=True)
        return loss.item(), gradients

    def batch(
        self, index: torch.Tensor, form: torch.memory_format
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """(images, objects) of some scenes, gathered on the device."""
        x = self.image[index].to(torch.float32, memory_format=form) / (self.levels - 1)
        return x, self.objects[index]

    def forms(self) -> dict[str, Callable[[], Step]]:
        """The step's candidates: eager and compiled, each in both memory layouts."""
        forms = {}
        layouts = {"": torch.contiguous_format, "_channels_last": torch.channels_last}
        for suffix, form in layouts.items():
            forms[f"torch_eager{suffix}"] = functools.partial(self._make, False, form)
            forms[f"torch_compile{suffix}"] = functools.partial(self._make, True, form)
        return forms

    def _make(self, compiled: bool, form: torch.memory_format) -> Step:
        """A call makes one update of a copy of the net, and waits for it."""
        c = self.c
        net = copy.deepcopy(self.net).to(memory_format=form)
        o = c.optim
        settings = {"lr": o.lr, "betas": (o.b1, o.b2), "eps": o.eps, "fused": True}
        optimiser = torch.optim.Adam(net.parameters(), **settings)
        params = list(net.parameters())
        averages = [p.detach().clone() for p in params] if o.ema else []
        loss_of = torch.compile(net) if compiled else net

        def call() -> None:
            index = torch.randint(len(self.image), (c.batch,), device=self.device)
            optimiser.zero_grad(set_to_none=True)
            loss_of(*self.batch(index, form)).backward()
            optimiser.step()
            if averages:
                with torch.no_grad():
                    torch._foreach_lerp_(averages, params, 1 - o.ema)
            if self.device == "cuda":
                torch.cuda.synchronize()

        call()
        return call
