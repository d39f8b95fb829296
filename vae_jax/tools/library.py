"""A trained run as an object of Python, and training on arrays.

    run = vae_jax.load("runs/digits")
    z = run.encode(images)
    p = vae_jax.load("runs/digits/export").classify(images)
    run = vae_jax.fit(images, labels, config="mnist", steps=2000, workdir="runs/mine")

Letters: N images of H x W x C, D latent dimensions, Y classes.
"""

import dataclasses
import functools
import importlib
import io
import os
import sys
import types
from collections.abc import Callable, Mapping
from typing import Any

import jax
import numpy as np
from ml_collections import ConfigDict

from vae_jax import cli as flags_lib
from vae_jax import config as config_lib
from vae_jax import data, distributions, models
from vae_jax.config import UserError, plugins
from vae_jax.data import evaluation
from vae_jax.evaluate import latent, likelihood
from vae_jax.evaluate.subject import Subject
from vae_jax.mesh import rules, store
from vae_jax.models import Model
from vae_jax.tools import assess, exported, inputs
from vae_jax.tools.exported import Exported
from vae_jax.tools.inputs import Images
from vae_jax.train import checkpoint, identity, log, loop, step
from vae_jax.train import program as program_lib
from vae_jax.train import run as run_lib

__all__ = ["Exported", "Run", "UserError", "fit", "load"]


@dataclasses.dataclass(frozen=True)
class Run:
    """A trained model, its parameters, and what may be asked of them.

    Images are uint8 in the data's own grey levels (0 .. levels − 1) or floats in [0, 1], one image
    HxWxC or several NxHxWxC. Floats are rounded to the nearest grey level, since the model's
    likelihoods are of these. Every other input raises :class:`UserError`.

    Args:
      workdir: the folder of the run.
      step: the step of the checkpoint.
      subject: config, model, parameters and mesh; its data are a description without images.
    """

    workdir: str
    step: int
    subject: Subject

    @property
    def model(self) -> Model:
        """The pure functions; see :class:`vae_jax.models.Model`."""
        return self.subject.model

    @property
    def params(self) -> dict[str, Any]:
        """The parameters, their moving average where training kept one."""
        return self.subject.params

    @property
    def config(self) -> ConfigDict:
        """The config that the run was trained with."""
        return self.subject.config

    @property
    def classes(self) -> tuple[str, ...]:
        """The names of the Y classes; () where the data has no labels."""
        return self.subject.data.classes

    def encode(self, images: Images) -> np.ndarray:
        """The mean of q(z|x) of each image, float32 NxD.

        A model with labels reads q(z|x,y) at the most probable y. The levels of a hierarchy lie
        side by side from the top; its first ``model.spec.code`` dimensions are what evaluation
        calls the code.
        """
        return self._read(images)["mu"]

    def classify(self, images: Images) -> np.ndarray:
        """p(y|x) of each image, float32 NxY.

        Raises:
          UserError: the model has no classifier, or the images are not its own kind.
        """
        if self.model.classify is None:
            raise UserError(f"classify: the model of {self.workdir} has no classifier")
        return self._read(images)["probabilities"]

    def decode(self, z: Any, labels: Any = None) -> np.ndarray:
        """The mean of p(x|z), float32 NxHxWxC in [0, 1], of z NxD or of one z of D dimensions.

        Args:
          labels: of a model with labels, a class for each z or one for all, 0 .. Y − 1.
        """
        self._check_decoder("decode")
        z_NxD = np.atleast_2d(np.asarray(z, np.float32))
        if z_NxD.ndim != 2 or z_NxD.shape[1] != self.model.latent:
            shape = list(np.shape(z))
            raise UserError(f"z={shape}: want numbers [N, {self.model.latent}]")
        return self._over(self._decoder, z_NxD, self._labels(labels, len(z_NxD)))["image"]

    def sample(self, n: int, seed: int = 0, labels: Any = None) -> np.ndarray:
        """Means of p(x|z) of ``n`` draws z ~ p(z), float32 nxHxWxC in [0, 1].

        Image i is a function of (seed, i). A model with labels draws class i mod Y, or ``labels``.
        """
        self._check_decoder("sample")
        if n < 1:
            raise UserError(f"n={n}: want one image at least")
        if labels is None and self.model.spec.labelled:
            labels = np.arange(n) % self.model.classes
        rows = np.zeros((n, 1), np.float32)
        key = jax.random.key(seed)
        return self._over(self._sampler, rows, self._labels(labels, n), key)["image"]

    def log_prob(self, images: Images, k: int = 100) -> np.ndarray:
        r"""A lower bound on log p(x) of each image in nats, float64 N.

        .. math:: \log \tfrac1K \sum_{k=1}^{K} p(x, z_k) / q(z_k|x), \quad z_k \sim q(z|x)

        (Burda et al. 2016, arXiv:1509.00519, eq. 8). The noise of image i is that of evaluation for
        test example i, so that the test set's mean is the ``iw_nats`` of ``eval.py --iw_k=K``.
        """
        self._check_decoder("log_prob")
        if k < 1:
            raise UserError(f"k={k}: want one importance sample at least")
        split = data.Split(self._pixels(images), None)
        key = step.stream(self.config.seed, "test")
        return likelihood.log_likelihood(self.subject, split, key, k=k)["iw"]

    def traverse(
        self, image: Images, dimensions: int = 10, columns: int = 7, span: float = 2.0
    ) -> np.ndarray:
        """Images along single latent dimensions, float32 RxKxHxWxC in [0, 1], R rows of K columns.

        A row sets one dimension of the image's code to −span … span (the prior's standard
        deviations, in K equal steps) and keeps the others. The rows are the ``dimensions`` with the
        largest KL(q(z_d|x) ‖ p(z_d)) of this image, largest first.

        Raises:
          UserError: not one image, or q(z|x) and p(z) are no diagonal Gaussians of one level.
        """
        self._check_decoder("traverse")
        read = self._read(image)
        prior = self.model.prior(self.params) if self.model.levels == 1 else None
        if "logvar" not in read or not isinstance(prior, distributions.Normal):
            raise UserError("traverse: wants a diagonal Gaussian q(z|x) and p(z), of one level")
        if len(read["mu"]) != 1:
            raise UserError(f"traverse: {len(read['mu'])} images; want one, such as images[0]")
        kl_D = latent.kl_per_dimension(read["mu"], read["logvar"], prior)
        mean_D = np.broadcast_to(np.ravel(prior.mu), kl_D.shape)
        sd_D = np.broadcast_to(np.exp(0.5 * np.ravel(prior.logvar)), kl_D.shape)
        rows = []
        for place in np.argsort(-kl_D, kind="stable")[:dimensions]:
            z_KxD = np.repeat(read["mu"], columns, axis=0)
            z_KxD[:, place] = mean_D[place] + sd_D[place] * np.linspace(-span, span, columns)
            rows.append(z_KxD)
        label = None
        if self.model.spec.labelled:
            label = int(read["probabilities"][0].argmax())
        means = self.decode(np.concatenate(rows), label)
        return means.reshape(len(rows), columns, *self.model.shape)

    def evaluate(self, **options: Any) -> dict[str, Any]:
        """Metrics on the exact test set, as ``eval.py`` computes and writes them; needs the data.

        Args:
          options: fields of :class:`vae_jax.tools.assess.Request`, such as ``iw_k=1000``.
        """
        request = assess.Request(which=self.step, **options)
        return assess.assess(self.workdir, request)[0]

    # --- programs --------------------------------------------------------------------------------

    @functools.cached_property
    def _reader(self) -> Callable[..., dict[str, jax.Array]]:
        model = self.model
        to_x = evaluation.seen(self.config, self.subject.levels)

        def program(params: dict, batch: dict) -> dict[str, jax.Array]:
            x = to_x(batch)
            q = model.encode(params, x, model.map_label(params, x))
            out = {"mu": q.mu}
            if isinstance(q, distributions.Normal):
                out["logvar"] = q.logvar
            if model.classify is not None:
                out["probabilities"] = jax.nn.softmax(model.classify(params, x))
            return out

        return program_lib.over_batches(program, self.subject.mesh)

    @functools.cached_property
    def _decoder(self) -> Callable[..., dict[str, jax.Array]]:
        model = self.model
        decode = self._check_decoder("decode")

        def program(params: dict, batch: dict) -> dict[str, jax.Array]:
            out = decode(params, batch["image"], batch.get("label"))
            return {"image": model.likelihood.mean(out)}

        return program_lib.over_batches(program, self.subject.mesh)

    @functools.cached_property
    def _sampler(self) -> Callable[..., dict[str, jax.Array]]:
        model = self.model
        decode = self._check_decoder("sample")

        def program(params: dict, batch: dict, key: jax.Array) -> dict[str, jax.Array]:
            y = batch.get("label")
            keys_N = distributions.example_keys(key, batch["id"])
            out = decode(params, model.sample(params, keys_N, y), y)
            return {"image": model.likelihood.mean(out)}

        return program_lib.over_batches(program, self.subject.mesh)

    def _over(
        self, program: Callable, rows_N: np.ndarray, label_N: np.ndarray | None, *rest: Any
    ) -> dict[str, np.ndarray]:
        """{name: float32 N…}: a program of all rows, ``config.eval.batch`` at a time."""
        split = data.Split(rows_N, label_N)
        parts = []
        size = self.config.eval.batch
        for batch, real in evaluation.batches(split, size, self.subject.mesh):
            parts.append((program(self.params, batch, *rest), real))
        out = likelihood.gather(parts)
        return {name: values.astype(np.float32) for name, values in out.items()}

    def _read(self, images: Images) -> dict[str, np.ndarray]:
        return self._over(self._reader, self._pixels(images), None)

    # --- input -----------------------------------------------------------------------------------

    def _check_decoder(self, method: str) -> Callable[..., jax.Array]:
        """The model's ``decode``, which a classifier alone does not have."""
        if self.model.decode is None:
            raise UserError(f"{method}: the model of {self.workdir} has no decoder")
        return self.model.decode

    def _labels(self, labels: Any, n: int) -> np.ndarray | None:
        """int32 [n] where the model has labels, else None."""
        if not self.model.spec.labelled:
            if labels is not None:
                raise UserError("labels: the model has none; want labels=None")
            return None
        return inputs.class_labels(labels, n, self.model.classes)

    def _pixels(self, images: Images) -> np.ndarray:
        """uint8 NxHxWxC in the data's grey levels."""
        return inputs.batch_of(images, self.subject.levels, self.model.shape)


def load(path: str | os.PathLike[str], checkpoint: str | int = "best") -> Run | Exported:
    """The :class:`Run` in a folder, from its config, its data.json and a checkpoint alone.

    The data set need not be there. A folder of exports, or a file of one, gives an
    :class:`~vae_jax.tools.exported.Exported`.

    Args:
      path: the folder of a run; or WORKDIR/export, or a .jaxexport file.
      checkpoint: 'best' by validation, 'latest' or a step.
    Raises:
      UserError: there is no run, no good checkpoint in it, or a file of it is damaged.
    """
    if exported.is_export(path):
        return exported.load(path)
    return load_run(path, checkpoint)


def load_run(workdir: str | os.PathLike[str], checkpoint: str | int = "best") -> Run:
    """:func:`load` of the folder of a run."""
    folder = os.fspath(workdir)
    c = run_lib.config_here(folder)
    dataset = _description(folder, c)
    mesh = rules.make_mesh(c.mesh)
    buildable = _without_lost_loss(c)
    config_lib.validate(buildable)
    model = models.build_for(buildable, dataset)
    shapes, places = program_lib.shapes(buildable, model, mesh)
    state, meta = run_lib.read_checkpoint(folder, shapes, places, checkpoint)
    subject = Subject(c, model, step.averaged(state), dataset, mesh)
    return Run(folder, int(meta["step"]), subject)


def _without_lost_loss(c: ConfigDict) -> ConfigDict:
    """``c``, with the ELBO where a loss of the user's own is gone: none is computed."""
    try:
        config_lib.resolve("objective", c.objective.name)
    except UserError:
        c = c.copy_and_resolve_references()
        c.objective = config_lib.call("objective", "elbo")
        c.warmup = config_lib.default().warmup
    return c


def _description(folder: str, c: ConfigDict) -> data.Dataset:
    """The run's data set without its images, from data.json; a run without one reads its data."""
    facts = identity.read(folder)
    if facts is None:
        return data.load(c.data)
    try:
        shape = tuple(facts["shape"])
        classes = tuple(facts["classes"])
        empty = data.Split(np.zeros((0, *shape), np.uint8), None)
        splits = dict.fromkeys(data.NAMES, empty)
        return data.Dataset(facts["name"], shape, facts["levels"], classes, **splits)
    except (ValueError, KeyError, TypeError):
        raise UserError(f"{folder}/data.json: not the description of a run's data") from None


# --- training on arrays --------------------------------------------------------------------------


def fit(
    images: Images,
    labels: Any = None,
    *,
    workdir: str | os.PathLike[str],
    config: str | ConfigDict = "mnist",
    objective: str | Callable[..., Any] | None = None,
    steps: int | None = None,
    overrides: Mapping[str, Any] | None = None,
) -> Run:
    """Train on arrays, and :func:`load` the run. The same call goes on with a run that was stopped.

    The images are kept in WORKDIR/images.npz, so that the run is one as of ``train.py``: eval.py
    and :meth:`Run.evaluate` find its data. A test and a validation split are carved from them.

    Args:
      images: uint8 or floats in [0, 1], NxHxW or NxHxWxC with 1 or 3 channels.
      labels: N whole numbers from 0, or N names. None leaves the classifier out, and a config's
        objective ``joint`` is then ``elbo``.
      config: a config, a config file, or the name of one that comes with the package.
      objective: a name, ``file:function``, or a function such as those of
        :mod:`vae_jax.objectives`. One that stands in a file is recorded as ``file:function``.
      overrides: other fields of the config, as ``{"optim.lr": 3e-4}``.
    Raises:
      UserError: bad input, as of ``train.py``; or the workdir has a run on other images.
    """
    folder = os.fspath(workdir)
    if store.remote(folder):
        raise UserError(f"workdir={folder}: fit keeps its images there; want a folder of this disk")
    c = config
    if not isinstance(config, ConfigDict):
        c = config_lib.load(config)
    pairs = []
    if objective is not None:
        name = objective if isinstance(objective, str) else objective_name(objective, folder)
        pairs.append(("objective.name", name))
    elif labels is None and c.objective.name == "joint":
        pairs.append(("objective.name", "elbo"))
    if labels is None:
        pairs.append(("classifier.name", "none"))
    if steps is not None:
        pairs.append(("steps", str(steps)))
    for field, value in (overrides or {}).items():
        pairs.append((field, str(value)))
    c = flags_lib.apply(c, pairs)
    c.data.name = f"npz:{_keep_images(folder, images, labels)}"
    loop.train(c, folder)
    return load_run(folder)


def objective_name(function: Callable[..., Any], workdir: str) -> str:
    """The ``file:function`` of an objective, which then means this very function in this process.

    For a function that no file gives back (of a notebook, or inside another function)
    WORKDIR/objective.py has one that only says so.

    Raises:
      UserError: it is no function.
    """
    if not callable(function):
        raise UserError(f"objective={function!r:.60}: want a name, file:function or a function")
    name = getattr(function, "__name__", "objective")
    module = sys.modules.get(getattr(function, "__module__", ""))
    path = getattr(module, "__file__", None)
    if path and os.path.isfile(path) and getattr(module, name, None) is function:
        path = os.path.abspath(path)
    else:
        if not name.isidentifier():  # <lambda>
            name = "objective"
        path = os.path.abspath(os.path.join(workdir, "objective.py"))
        log.replace(path, _stub(name, function).encode())
        module = types.ModuleType("objective")
        setattr(module, name, function)
    sys.modules[plugins.module_name(path)] = module  # the file is not run a second time
    return f"{path}:{name}"


def _stub(name: str, function: Callable[..., Any]) -> str:
    """A file with a function of this name and these keywords that raises one line."""
    signature = "model, params, batch, keys"
    arguments = config_lib.arguments(function, "objective")
    if arguments:
        signature += ", *"
    for key, value in arguments.items():
        signature += f", {key}={value!r}"
    why = "objective: a function of a session of Python; pass it to vae_jax.fit again"
    lines = (
        "from vae_jax.config import UserError",
        "",
        "",
        f"def {name}({signature}):",
        f"    raise UserError({why!r})",
        "",
    )
    return "\n".join(lines)


def _keep_images(folder: str, images: Images, labels: Any) -> str:
    """The path of WORKDIR/images.npz, written where no run was trained on it."""
    image = inputs.pixels(images, 256, "[N, H, W] or [N, H, W, C]")
    arrays = {"images": image}
    if labels is not None:
        arrays["labels"] = np.asarray(labels)
        if arrays["labels"].dtype.kind not in "iuU":
            kind = arrays["labels"].dtype
            raise UserError(f"labels: {kind}; want whole numbers from 0, or names")
    path = os.path.abspath(os.path.join(folder, "images.npz"))
    if os.path.isfile(path) and checkpoint.steps(folder):
        with np.load(path, allow_pickle=False) as file:
            same = file.keys() == arrays.keys()
            for name in file.keys() & arrays.keys():
                same = same and np.array_equal(file[name], arrays[name])
        if not same:
            raise UserError(f"workdir={folder}: holds a run on other images; want another workdir")
        return path
    buffer = io.BytesIO()
    np.savez(buffer, **arrays)
    log.replace(path, buffer.getvalue())
    return path


class _Evaluate(types.ModuleType):
    """The package ``vae_jax.evaluate``, which ``vae_jax.evaluate(run)`` calls too."""

    def __call__(self, run: Run, **options: Any) -> dict[str, Any]:
        """:meth:`Run.evaluate`."""
        return run.evaluate(**options)


importlib.import_module("vae_jax.evaluate").__class__ = _Evaluate
