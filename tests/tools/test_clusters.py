"""The command that clusters several seeds."""

import json

import pytest

from vae_jax.config import UserError
from vae_jax.tools import clusters, results

BEGIN = """
from vae_jax import config

def get_config():
    c = config.default()
    c.steps = 200
    c.steps_per_call = 50
    c.unroll = False
    c.latent = 6
    c.encoder = config.call("encoder", "mlp", widths=(64,))
    c.decoder = config.call("decoder", "mlp", widths=(64,))
    c.objective = config.call("objective", "rae", beta=0.0, decoder_l2=0.0)
    c.eval.every = 200
    c.mesh.data = 1
    return c
"""
AFTER = """
import begin
from vae_jax import config

def get_config():
    c = begin.get_config()
    c.prior = config.call("prior", "mixture", components=10)
    c.objective = config.call("objective", "vade")
    c.eval.select = "elbo"
    return c
"""


@pytest.mark.slow
def test_two_seeds_are_trained_and_told_and_nothing_is_done_twice(tmp_path, monkeypatch, capsys):
    monkeypatch.syspath_prepend(tmp_path)
    (tmp_path / "begin.py").write_text(BEGIN)
    (tmp_path / "after.py").write_text(AFTER)
    command = [f"--begin={tmp_path}/begin.py", f"--config={tmp_path}/after.py", "--seeds=0,1"]
    command += [f"--workdir={tmp_path}/runs", f"--results={tmp_path}/clusters.json"]
    assert clusters.run(["clusters", *command]) == 0
    rows = json.loads((tmp_path / "runs/clusters.json").read_text())
    assert set(rows) == {"0", "1"} and rows["0"] != rows["1"]
    figures = results.read(tmp_path / "clusters.json")["figures"]
    for key in ("autoencoder_cluster_accuracy", "vade_prior_cluster_accuracy"):
        each = [row[key] for row in rows.values()]
        assert figures[key]["value"] == pytest.approx(sum(each) / 2) and figures[key]["n"] == 2
        assert figures[f"{key}[seed=1]"]["value"] == each[1]
        assert min(each) > 0.3
    capsys.readouterr()
    assert clusters.run(["clusters", *command]) == 0
    assert json.loads((tmp_path / "runs/clusters.json").read_text()) == rows
    assert "compiled in" not in capsys.readouterr().out, "the runs are there"


def test_what_is_missing_is_one_line():
    pair = ["--begin=configs/ae_mnist.py", "--workdir=runs/a"]
    with pytest.raises(UserError, match=r"config: want --config=FILE"):
        clusters.run(["clusters", *pair])
    with pytest.raises(UserError, match=r"prior\.name=normal: has no clusters; want mixture"):
        clusters.run(["clusters", *pair, "--config=configs/ae_mnist.py"])
    with pytest.raises(UserError, match=r"seeds=a: want whole numbers"):
        clusters.run(["clusters", *pair, "--config=configs/vade_mnist.py", "--seeds=a"])
