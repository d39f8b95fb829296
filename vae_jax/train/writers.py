"""Where a run's numbers, texts and images go beside its own files: TensorBoard, wandb or MLflow.

``VAE_JAX_LOG`` names them, ``tensorboard`` where it is not set; ``train.py --log=wandb`` sets it. A
new one is a class with the methods of :class:`Writer` and a line of :data:`WRITERS`. None of them
writes where the run's folder is in a store.
"""

import hashlib
import importlib
import inspect
import json
import os
import struct
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Protocol

from etils import epath

from vae_jax import config as config_lib
from vae_jax.config import UserError
from vae_jax.mesh import store

VARIABLE = "VAE_JAX_LOG"
PROJECT = "vae_jax"  # wandb's project and MLflow's experiment, unless their own variables name one
PICTURES = ("reconstructions", "samples", "interpolations", "latents")  # of the report
Fields = Mapping[str, Any]  # name of a field of the config → value


class Writer(Protocol):
    """What a place must be able to do with a run. A name of a metric is that of metrics.json."""

    def scalars(self, split: str, step: int, values: Mapping[str, float]) -> None:
        """Finite numbers of one step of ``train``, ``validation`` or ``test``."""

    def text(self, name: str, markdown: str) -> None:
        """A text of the run as a whole."""

    def image(self, name: str, step: int, path: str) -> None:
        """A PNG that lies at ``path``."""

    def hparams(self, fields: Fields, metrics: Mapping[str, float]) -> None:
        """The config, and the metrics that it is judged by."""

    def close(self) -> None:
        """Write what is not written yet."""


# --- TensorBoard ---------------------------------------------------------------------------------


class TensorBoard:
    """Events in FOLDER/SPLIT, a run for each split: TensorBoard shows NAME/train, NAME/test, …

    Each event is written at once, since a thread could not report a full disk.
    """

    def __init__(self, folder: str, resume_step: int | None = None) -> None:
        self._folder = folder
        self._resume_step = resume_step
        self._files: dict[str, Any] = {}  # split → tensorboardX's writer of events

    def scalars(self, split: str, step: int, values: Mapping[str, float]) -> None:
        from tensorboardX import summary

        for name, value in values.items():
            self._write(split, step, summary.scalar(name, value))
        self._file(split).flush()

    def text(self, name: str, markdown: str) -> None:
        from tensorboardX import summary

        self._write("train", 0, summary.text(name, markdown))

    def image(self, name: str, step: int, path: str) -> None:
        from tensorboardX.proto.summary_pb2 import Summary

        with open(path, "rb") as file:
            png = file.read()
        width, height = struct.unpack(">II", png[16:24])  # of the header, which comes first
        image = Summary.Image(encoded_image_string=png, width=width, height=height, colorspace=4)
        self._write("test", step, Summary(value=[Summary.Value(tag=name, image=image)]))

    def hparams(self, fields: Fields, metrics: Mapping[str, float]) -> None:
        from tensorboardX import summary

        for part in summary.hparams(_plain(fields), dict(metrics)):
            self._write("test", 0, part)

    def close(self) -> None:
        for file in self._files.values():
            file.close()

    def _file(self, split: str) -> Any:
        if split not in self._files:
            from tensorboardX.event_file_writer import EventsWriter

            # A file per split: TensorBoard then draws train and validation in one chart.
            folder = os.path.join(self._folder, split)
            if not os.path.isdir(self._folder):  # or the file would begin a second run's folder
                why = "the folder was moved or deleted under the run"
                want = "want the same command with its new place"
                raise UserError(f"workdir={self._folder}: {why}; {want}")
            os.makedirs(folder, exist_ok=True)
            # The time in a file's name is of whole seconds: another start may be of the same one.
            suffix = f".{self._resume_step or 0}"
            self._files[split] = EventsWriter(os.path.join(folder, "events"), suffix)
            if self._resume_step is not None:
                self._hide_later_events(self._files[split])
        return self._files[split]

    def _hide_later_events(self, file: Any) -> None:
        """TensorBoard hides the events from this step on that an earlier process wrote."""
        from tensorboardX.proto.event_pb2 import Event, SessionLog

        start = SessionLog(status=SessionLog.START)
        first = self._resume_step + 1
        file.write_event(Event(wall_time=time.time(), step=first, session_log=start))

    def _write(self, split: str, step: int, summary: Any) -> None:
        from tensorboardX.proto.event_pb2 import Event

        event = Event(wall_time=time.time(), step=step, summary=summary)
        self._file(split).write_event(event)


# --- wandb and MLflow ----------------------------------------------------------------------------


def _library(name: str) -> Any:
    """An optional package.

    Raises:
      UserError: it is not installed.
    """
    try:
        return importlib.import_module(name)
    except ImportError:
        raise UserError(f"log={name}: not installed; want pip install 'vae_jax[{name}]'") from None


def _identity(folder: str) -> str:
    """A name of the folder that stays when its run goes on, letters and digits only."""
    return hashlib.sha256(os.path.abspath(folder).encode()).hexdigest()[:16]


def _name(folder: str) -> str:
    """The last two parts of a replica's folder, else the last one."""
    path = os.path.abspath(folder)
    name = os.path.basename(path)
    if name.startswith("replica_"):
        return f"{os.path.basename(os.path.dirname(path))}/{name}"
    return name


class WandB:
    """A run of Weights & Biases; its own variables (WANDB_MODE=offline, …) apply.

    ``step`` is a value of its own: a run that goes on from an earlier step may write it again.
    """

    def __init__(self, folder: str, resume_step: int | None = None) -> None:
        self._wandb = _library("wandb")
        self._run = self._wandb.init(
            project=os.environ.get("WANDB_PROJECT", PROJECT),
            name=_name(folder),
            id=_identity(folder),
            dir=folder,
            resume="allow",
            reinit="create_new",  # replicas are runs side by side
        )
        self.hparams(read_fields(folder), {})  # a run that trains has them from its beginning
        self._run.define_metric("*", step_metric="step")

    def scalars(self, split: str, step: int, values: Mapping[str, float]) -> None:
        row = {f"{split}/{name}": value for name, value in values.items()}
        self._run.log(row | {"step": step})

    def text(self, name: str, markdown: str) -> None:
        self._run.summary[name] = markdown

    def image(self, name: str, step: int, path: str) -> None:
        self._run.log({f"test/{name}": self._wandb.Image(path), "step": step})

    def hparams(self, fields: Fields, metrics: Mapping[str, float]) -> None:
        self._run.config.update(_plain(fields), allow_val_change=True)
        self._run.summary.update({f"test/{name}": value for name, value in metrics.items()})

    def close(self) -> None:
        self._run.finish()


class MLflow:
    """A run of MLflow, in FOLDER/mlflow.db unless MLFLOW_TRACKING_URI names a server."""

    def __init__(self, folder: str, resume_step: int | None = None) -> None:
        self._mlflow = _library("mlflow")
        uri = os.environ.get("MLFLOW_TRACKING_URI", "")
        place = None  # of artifacts: the server's own
        if not uri:
            path = os.path.abspath(folder)
            uri = f"sqlite:///{path}/mlflow.db"
            place = os.path.join(path, "mlflow")
        self._client = self._mlflow.MlflowClient(tracking_uri=uri)
        project = os.environ.get("MLFLOW_EXPERIMENT_NAME", PROJECT)
        if self._client.get_experiment_by_name(project) is None:
            self._client.create_experiment(project, place)
        number = self._client.get_experiment_by_name(project).experiment_id
        tags = {"folder": _identity(folder)}
        query = f"tags.folder = '{tags['folder']}'"
        runs = self._client.search_runs([number], query, max_results=1)
        if not runs:
            runs = [self._client.create_run(number, run_name=_name(folder), tags=tags)]
        self._run = runs[0].info.run_id
        self.hparams(read_fields(folder), {})

    def scalars(self, split: str, step: int, values: Mapping[str, float]) -> None:
        now = int(1000 * time.time())
        rows = []
        for name, value in values.items():
            key = f"{split}/{name}".replace("@", "-")
            rows.append(self._mlflow.entities.Metric(key, value, now, step))
        self._client.log_batch(self._run, metrics=rows)

    def text(self, name: str, markdown: str) -> None:
        self._client.log_text(self._run, markdown, f"{name}.md")

    def image(self, name: str, step: int, path: str) -> None:
        self._client.log_artifact(self._run, path, f"step_{step}")

    def hparams(self, fields: Fields, metrics: Mapping[str, float]) -> None:
        known = self._client.get_run(self._run).data.params
        for name, value in _plain(fields).items():
            if name not in known:  # MLflow keeps the first value of a parameter
                self._client.log_param(self._run, name, value)

    def close(self) -> None:
        self._client.set_terminated(self._run)


# --- which ---------------------------------------------------------------------------------------

WRITERS: dict[str, Callable[..., Writer]] = {
    "tensorboard": TensorBoard,
    "wandb": WandB,
    "mlflow": MLflow,
}


def use(names: Sequence[str]) -> None:
    """Let this process, and those that it starts, write to these places; none: to none.

    Raises:
      UserError: one is unknown, or not installed.
    """
    for name in names:
        if name not in WRITERS:
            raise UserError(f"log={name}: unknown; {config_lib.nearest(name, WRITERS)}")
        if name != "tensorboard":
            _library(name)
    os.environ[VARIABLE] = ",".join(names)


def create(folder: str, resume_step: int | None = None) -> list[Writer]:
    """The writers of a run's folder that :data:`VARIABLE` names.

    Args:
      resume_step: the step that the run goes on from; None for a new one.
    Raises:
      UserError: one is unknown, or not installed.
    """
    result = []
    for name in filter(None, os.environ.get(VARIABLE, "tensorboard").split(",")):
        if name not in WRITERS:
            raise UserError(f"{VARIABLE}={name}: {config_lib.nearest(name, WRITERS)}")
        if not store.remote(folder):
            result.append(WRITERS[name](folder, resume_step))
    return result


def read_fields(folder: str) -> Fields:
    """The fields of FOLDER/config.json; {} where there is none."""
    try:
        return config_lib.flatten(json.loads(epath.Path(folder, "config.json").read_bytes()))
    except (OSError, ValueError, AttributeError):
        return {}


def _plain(fields: Fields) -> dict[str, Any]:
    """Numbers, switches and words as they are, all else as words."""
    plain = {}
    for name, value in fields.items():
        plain[name] = value if isinstance(value, bool | int | float | str) else str(value)
    return plain


def describe(writer: Writer, folder: str) -> None:
    """Write the texts of a run that begins: its config, and the equation of its objective."""
    fields = read_fields(folder)
    if not fields:
        return
    lines = ["| field | value |", "|---|---|"]
    for name, value in fields.items():
        text = str(value).replace("|", "\\|")
        lines.append(f"| {name} | {text} |")
    writer.text("config", "\n".join(lines))
    name = str(fields["objective.name"])
    try:
        words = config_lib.resolve("objective", name).__doc__
    except UserError:  # an own loss that is no longer there
        words = None
    if words:
        writer.text("objective", f"**{name}**\n\n{inspect.cleandoc(words)}")


def evaluation(folder: str, step: int, metrics: Mapping[str, Any]) -> None:
    """Write what an evaluation of a run gave: test metrics, hparams and pictures of the report.

    An earlier evaluation's events of TensorBoard are replaced.

    Args:
      step: the step of the checkpoint.
      metrics: as in metrics.json; those that are None or no numbers are left out.
    """
    values = {}
    for name, value in metrics.items():
        if isinstance(value, int | float) and "@" not in name:
            values[name] = float(value)
    events = os.path.join(folder, "test")
    if not store.remote(folder) and os.path.isdir(events):
        for name in os.listdir(events):
            if name.startswith("events"):
                os.unlink(os.path.join(events, name))
    for writer in create(folder):
        try:
            writer.scalars("test", step, values)
            writer.hparams(read_fields(folder), values)
            for name in PICTURES:
                path = os.path.join(folder, "report", f"{name}.png")
                if os.path.isfile(path):
                    writer.image(name, step, path)
        finally:
            writer.close()
