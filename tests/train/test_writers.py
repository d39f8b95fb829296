"""TensorBoard, wandb and MLflow get a run's numbers, texts, pictures and hparams."""

import importlib
import io
import json
import os
import struct

import PIL.Image
import pytest

from vae_jax import config as config_lib
from vae_jax.config import UserError
from vae_jax.train import writers
from vae_jax.train.log import MetricsLog


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """A run's folder with a config, and a picture in its report."""
    monkeypatch.delenv(writers.VARIABLE, raising=False)
    folder = tmp_path / "my run"
    (folder / "report").mkdir(parents=True)
    c = config_lib.default()
    c.objective = config_lib.call("objective", "elbo", beta=4.0)
    (folder / "config.json").write_text(json.dumps(config_lib.to_json(c)))
    PIL.Image.new("RGBA", (2, 3), "red").save(folder / "report" / "samples.png")
    return folder


def events(folder):
    """The events of TensorBoard's records: u64 length, u32 crc, Event, u32 crc."""
    from tensorboardX.proto.event_pb2 import Event

    result = []
    for name in sorted(os.listdir(folder)):
        stream = io.BytesIO((folder / name).read_bytes())
        while header := stream.read(12):
            result.append(Event.FromString(stream.read(struct.unpack("<Q", header[:8])[0])))
            stream.read(4)
    return result


def values(folder):
    """{tag: value of its summary}, the last of each."""
    tags = {}
    for event in events(folder):
        tags |= {one.tag: one for one in event.summary.value}
    return tags


def train(folder, steps=(10, 20), resume_step=0):
    rows = MetricsLog(str(folder), resume_step)
    for step in steps:
        rows.write(step, "train", {"loss": 100.0 / step})
        rows.write(step, "validation", {"loss": 200.0 / step})
    rows.close()


def test_tensorboard_has_texts_of_a_run_that_begins(folder):
    train(folder)
    tags = values(folder / "train")
    config = tags["config/text_summary"].tensor.string_val[0].decode()
    assert "| objective.beta | 4.0 |" in config
    objective = tags["objective/text_summary"].tensor.string_val[0].decode()
    assert objective.startswith("**elbo**") and "math::" in objective
    assert tags["loss"].simple_value == 5.0
    assert set(values(folder / "validation")) == {"loss"}
    train(folder, (30,), resume_step=20)
    texts = []
    for event in events(folder / "train"):
        texts += [one.tag for one in event.summary.value if one.tag.endswith("text_summary")]
    assert len(texts) == 2  # a run that goes on does not write them again


def test_tensorboard_has_test_metrics_hparams_and_pictures(folder):
    train(folder)
    metrics = {"accuracy": 0.5, "n": 359, "bits_per_dim": None, "series@1": 2.0}
    writers.evaluation(str(folder), 20, metrics | {"accuracy": 0.1})
    writers.evaluation(str(folder), 20, metrics)
    tags = values(folder / "test")
    assert tags["accuracy"].simple_value == 0.5 and tags["n"].simple_value == 359
    image = tags["samples"].image
    png = (folder / "report" / "samples.png").read_bytes()
    assert (image.width, image.height, image.encoded_image_string) == (2, 3, png)
    assert {name for name in tags if name.startswith("_hparams_")} == {
        "_hparams_/experiment",
        "_hparams_/session_start_info",
        "_hparams_/session_end_info",
    }
    start = tags["_hparams_/session_start_info"].metadata.plugin_data.content
    assert b"objective.beta" in start and b"objective.name" in start
    assert "bits_per_dim" not in tags and "series@1" not in tags
    assert len(os.listdir(folder / "test")) == 1  # the second evaluation replaced the first
    assert sorted(path.name for path in folder.iterdir() if path.is_dir()) == [
        *("report", "test", "train", "validation")
    ]


def test_a_place_is_chosen_by_name(folder, monkeypatch):
    monkeypatch.setenv(writers.VARIABLE, "")
    train(folder)
    assert not (folder / "train").exists()
    with pytest.raises(UserError, match=r"^log=tensorbord: unknown; .*tensorboard"):
        writers.use(["tensorbord"])
    monkeypatch.setenv(writers.VARIABLE, "wandv")
    with pytest.raises(UserError, match=r"^VAE_JAX_LOG=wandv: .*wandb"):
        train(folder)


@pytest.mark.parametrize("name", ["wandb", "mlflow"])
def test_a_package_that_is_not_installed_is_one_line(name, monkeypatch):
    def absent(wanted):
        raise ImportError(wanted)

    monkeypatch.setattr(importlib, "import_module", absent)
    with pytest.raises(UserError, match=rf"^log={name}: not installed; want pip install"):
        writers.use([name])


def unframed(blob):
    """The records of a .wandb file, a log as LevelDB's.

    After a header of 7 bytes come blocks of 32 KiB of pieces: u32 crc, u16 length, u8 type, data.
    """
    parts = []
    place = 7
    while place + 7 < len(blob):
        rest = -place % 2**15
        if 0 < rest < 7:  # too short for a piece
            place += rest
            continue
        size = struct.unpack("<H", blob[place + 4 : place + 6])[0]
        parts.append(blob[place + 7 : place + 7 + size])
        place += 7 + size
    return b"".join(parts)


def test_wandb_offline(folder, monkeypatch):
    pytest.importorskip("wandb")
    monkeypatch.setenv("WANDB_MODE", "offline")
    monkeypatch.setenv("WANDB_SILENT", "true")
    monkeypatch.setenv(writers.VARIABLE, "")  # what use sets is undone after the test
    writers.use(["wandb"])
    train(folder)
    train(folder, (15, 25), resume_step=10)
    writers.evaluation(str(folder), 20, {"accuracy": 0.5})
    files = sorted((folder / "wandb").glob("offline-run-*/*.wandb"))
    assert len(files) == 3
    blob = b"".join(unframed(file.read_bytes()) for file in files)
    for word in (b"my run", b"validation/loss", b"test/accuracy", b"objective.beta", b"step"):
        assert word in blob
    assert list((folder / "wandb").glob("offline-run-*/files/media/images/test/samples*.png"))
    assert not (folder / "train").exists()


def test_mlflow_in_a_file(folder, monkeypatch):
    mlflow = pytest.importorskip("mlflow")
    pytest.importorskip("sqlalchemy")
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    monkeypatch.setenv(writers.VARIABLE, "mlflow")
    train(folder)
    train(folder, (15, 25), resume_step=10)
    writers.evaluation(str(folder), 20, {"accuracy": 0.5})
    assert (folder / "mlflow").is_dir()
    client = mlflow.MlflowClient(tracking_uri=f"sqlite:///{folder}/mlflow.db")
    experiment = client.get_experiment_by_name("vae_jax")
    runs = client.search_runs([experiment.experiment_id])
    assert len(runs) == 1 and runs[0].info.run_name == "my run"
    run = runs[0]
    assert run.info.status == "FINISHED"
    assert run.data.params["objective.beta"] == "4.0"
    assert run.data.metrics["test/accuracy"] == 0.5
    history = client.get_metric_history(run.info.run_id, "train/loss")
    assert {(one.step, one.value) for one in history} == {
        *((10, 10.0), (20, 5.0), (15, 100 / 15), (25, 4.0))
    }
    names = {one.path for one in client.list_artifacts(run.info.run_id)}
    assert names == {"config.md", "objective.md", "step_20"}
