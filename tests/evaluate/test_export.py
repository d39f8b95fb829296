"""Exported programs, and predictions without the model code."""

import json
import pathlib
import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import export as jax_export
from PIL import Image

from vae_jax.config import UserError
from vae_jax.data import predict
from vae_jax.tools import export

RNG = np.random.default_rng


def test_an_exported_program_is_the_live_one(trained):
    folder, s, params = trained
    for what in ("classifier", "encoder", "sampler"):
        path = export.write(folder, what, say=lambda _: None)
        with open(path, "rb") as f:
            loaded = jax_export.deserialize(bytearray(f.read()))
        assert loaded.platforms == export.PLATFORMS
        image = s.dataset.test.image[:5]
        if what == "sampler":
            a, b = (
                np.asarray(loaded.call(np.array(seeds, np.uint32))["image"])
                for seeds in ([7, 8, 9], [9])
            )
            np.testing.assert_allclose(a[2], b[0], atol=1e-5)  # an image is a function of its seed
            assert (
                a.shape == (3, 8, 8, 1)
                and a.min() >= 0
                and a.max() <= 1
                and np.abs(a[0] - a[1]).max() > 0.1
            )
            continue
        q = s.model.encode(params, jnp.asarray(image, jnp.float32) / 16)
        one, all_ = (jax.tree.map(np.asarray, loaded.call(image[:n])) for n in (1, 5))
        for name, value in all_.items():
            np.testing.assert_allclose(one[name][0], value[0], rtol=1e-4)
        if what == "encoder":
            np.testing.assert_allclose(all_["mu"], q.mu, rtol=1e-4, atol=1e-5)
            np.testing.assert_allclose(all_["logvar"], q.logvar, rtol=1e-4, atol=1e-5)
        else:
            t = predict.load(path)[1]["temperature"]
            np.testing.assert_allclose(
                all_["probabilities"],
                jax.nn.softmax(s.model.classify(params, jnp.asarray(image, jnp.float32) / 16) / t),
                rtol=1e-3,
                atol=1e-5,
            )


def test_predictions_without_the_model_code(trained, tmp_path):
    folder, s, _ = trained
    path = export.write(folder, "classifier", say=lambda _: None)
    (tmp_path / "more").mkdir()
    image, label = s.dataset.test.image[0, :, :, 0], s.dataset.test.label[0]
    grey = Image.fromarray(np.rint(image / 16 * 255).astype(np.uint8))
    grey.save(tmp_path / "same.png")
    grey.resize((64, 64), Image.Resampling.BICUBIC).convert("RGBA").save(
        tmp_path / "more" / "large.png"
    )
    Image.fromarray(RNG(0).integers(0, 255, (9, 30, 3), np.uint8)).save(
        tmp_path / "more" / "noise.bmp"
    )
    (tmp_path / "more" / "broken.png").write_bytes(b"GIF89a")
    (tmp_path / "more" / "notes.txt").write_text("no image")
    code = (
        "import sys; sys.path.insert(0, sys.argv[1]); import predict\n"
        "code = predict.main(sys.argv[2:])\n"
        "seen = {name.split('.')[0] for name in sys.modules}\n"
        "assert not seen & {'vae_jax', 'flax', 'orbax', 'optax', 'ml_collections', 'absl'}, seen\n"
        "sys.exit(code)"
    )
    given = [f"{folder}/export", path, str(tmp_path / "same.png"), str(tmp_path / "more")]
    done = subprocess.run(
        [sys.executable, "-I", "-c", code, *given], capture_output=True, text=True
    )
    assert done.returncode == 1, done.stderr
    assert (
        done.stderr.startswith(f"error: {tmp_path}/more/broken.png: not a readable image")
        and "Trace" not in done.stderr
    )
    rows = {line.split()[0].rpartition("/")[2]: line.split() for line in done.stdout.splitlines()}
    assert set(rows) == {"same.png", "large.png", "noise.bmp"}
    assert rows["same.png"][1] == rows["large.png"][1] == str(label)
    (tmp_path / "empty").mkdir()
    assert predict.main([path, str(tmp_path / "empty")]) == 2
    familiar = {name: float(words[-1].rstrip("%")) for name, words in rows.items()}
    assert familiar["noise.bmp"] <= 1 < familiar["same.png"]


def test_a_damaged_or_wrong_export_is_one_line(trained, capsys):
    folder, _, _ = trained
    path = export.write(folder, "encoder", say=lambda _: None)
    assert predict.main([path, "x.png"]) == 2
    assert "--what=encoder; want one of --what=classifier" in capsys.readouterr().err
    with open(path, "r+b") as f:
        f.seek(99)
        f.write(b"\0\1\2")
    assert predict.main([path, "x.png"]) == 2
    assert "damaged" in capsys.readouterr().err
    assert predict.main([f"{folder}/none.jaxexport", "x.png"]) == 2
    assert capsys.readouterr().err.strip().endswith("none.jaxexport: No such file or directory")
    with pytest.raises(UserError, match="workdir: want"):
        export.run(["export"])


def test_damaged_metadata_of_an_export_is_one_line(trained):
    """One number or name that changed; an export of an earlier version has no checksum."""
    path = pathlib.Path(export.write(trained[0], "encoder", say=lambda _: None))
    description = path.with_suffix(".json")
    meta = json.loads(description.read_text())
    assert predict.load(path)[1] == meta
    image = meta["image"] | {"levels": 16}
    for change in ({"classes": meta["classes"][::-1]}, {"image": image}):
        description.write_text(json.dumps(meta | change))
        with pytest.raises(predict.Refused, match=r"encoder\.json: not the metadata .*damaged"):
            predict.load(path)
    del meta["metadata_sha256"]
    description.write_text(json.dumps(meta))
    assert predict.load(path)[1] == meta


def test_familiarity_is_a_share():
    old = {"of": "distance", "quantiles": [0, 5, 10]}
    got = predict.familiarity({"distance": np.array([0, 5, 10, 99])}, old)
    np.testing.assert_allclose(got, [1, 0.5, 0, 0])
    rng = RNG(0)
    usual = {"distance": rng.normal(size=4000), "neg_elbo": rng.normal(size=4000)}
    levels = np.linspace(0, 1, 1001)
    quantiles = {name: np.quantile(score, levels) for name, score in usual.items()}
    smallest = np.quantile(predict.smallest_rank(usual, quantiles), levels)
    fresh = {name: rng.normal(size=4000) for name in usual}
    got = predict.familiarity(fresh, {"quantiles": quantiles, "smallest": smallest})
    for share in (0.01, 0.05, 0.5):  # two scores, and yet so many false alarms
        assert (got < share).mean() == pytest.approx(share, abs=4 * np.sqrt(share / 4000) + 0.003)
    odd = {"distance": np.array([0.0, 9.0]), "neg_elbo": np.array([np.nan, 0.0])}
    assert predict.familiarity(odd, {"quantiles": quantiles, "smallest": smallest}).max() < 0.001


def test_images_of_other_kinds_are_not_familiar(trained):
    """Noise that is moved until its code is a test image's is familiar by the code's distance."""
    folder, s, params = trained
    path = export.write(folder, "classifier", say=lambda _: None)
    call, meta = predict.load(path)
    reference = meta["familiarity"]
    rng = RNG(1)
    test = s.dataset.test.image
    kinds = {
        "flat": np.broadcast_to(np.arange(17, dtype=np.uint8)[3:, None, None, None], (14, 8, 8, 1)),
        "noise": rng.integers(0, 17, (40, 8, 8, 1)).astype(np.uint8),
        "inverted": 16 - test[:40],
    }
    target = s.model.encode(params, jnp.asarray(test[:40], jnp.float32) / 16).mu

    @jax.jit
    def nearer(x):
        def gap(x):
            return ((s.model.encode(params, x).mu - target) ** 2).sum()

        return jnp.clip(x - 0.02 * jnp.sign(jax.grad(gap)(x)), 0, 1)

    x = jnp.asarray(kinds["noise"], jnp.float32) / 16
    for _ in range(200):
        x = nearer(x)
    kinds["disguised"] = np.rint(16 * np.asarray(x)).astype(np.uint8)
    distance = np.asarray(call(kinds["disguised"])["distance"])
    assert np.median(predict.rank(distance, reference["quantiles"]["distance"])) > 0.05
    for image in kinds.values():
        out = {name: np.asarray(v) for name, v in call(np.array(image)).items()}
        assert np.median(predict.familiarity(out, reference)) <= 0.01
    assert 0 < reference["false_alarms"]["0.05"] < 0.15
