"""benchmark.py runs as a user runs it. No time is asserted."""

import json
import os
import pathlib
import re

import jax
import pytest

import benchmark
from benchmarks import machine
from tests.benchmarks.tiny import DIGITS, TINY
from vae_jax.config import UserError
from vae_jax.tools import results
from vae_jax.train import program


@pytest.fixture(scope="module")
def sweep(tmp_path_factory: pytest.TempPathFactory) -> tuple[pathlib.Path, list[str], int]:
    """One run of the script: two cells of a tiny config, and one that needs 64 of 8 devices."""
    folder = tmp_path_factory.mktemp("benchmark")
    argv = ["benchmark.py", f"--config={DIGITS}", "--rounds=3", "--seconds=0.01"]
    argv += [f"--config.{field}={value}" for field, value in TINY.items()]
    argv += ["--sweep=mesh.data=1,2,64", f"--out={folder}/tiny.json", f"--page={folder}/page"]
    old = jax.config.jax_compilation_cache_dir
    with pytest.MonkeyPatch.context() as patch:  # the peaks are not what is tested here
        patch.setattr(machine, "SIZES", {"cpu": (64, 128)})
        patch.setattr(machine, "COPY", {"cpu": 2**20})
        code = benchmark.run(argv)
    assert jax.config.jax_compilation_cache_dir == old
    return folder, argv, code


def test_a_failing_cell_is_a_row_and_the_others_go_on(sweep: tuple) -> None:
    folder, _, code = sweep
    assert code == 0
    figures = results.read(folder / "tiny.json")["figures"]
    assert figures["mesh.data=64.step_ms"]["value"] is None
    for cell in ("mesh.data=1", "mesh.data=2"):
        assert figures[f"{cell}.step_ms"]["n"] == 3
        assert figures[f"{cell}.warm_compile_s"]["value"] is not None  # it did come from the cache
        assert figures[f"{cell}.peak_mb"]["value"] > figures[f"{cell}.temp_mb"]["value"]
        low = figures[f"{cell}.p10_ms"]["value"]
        middle = figures[f"{cell}.step_ms"]["value"]
        assert 0 < low <= middle <= figures[f"{cell}.p90_ms"]["value"]
        assert figures[f"{cell}.images_per_s"]["value"] == pytest.approx(8e3 / middle)
    for n in (1, 2):
        images = figures[f"mesh.data={n}.images_per_s"]["value"]
        assert figures[f"mesh.data={n}.images_per_s_per_device"]["value"] == images / n
    # Two devices do the work of one, but for the optimiser, which each does for itself.
    assert figures["mesh.data=1.hand_mflop"] == figures["mesh.data=2.hand_mflop"]


def test_every_window_is_in_the_json_lines(sweep: tuple) -> None:
    facts, *rows = map(json.loads, (sweep[0] / "tiny.jsonl").read_text().splitlines())
    assert {"device", "versions", "commit", "command"} <= set(facts)
    settings = json.loads((sweep[0] / "tiny.json").read_text())["settings"]
    assert settings.items() <= facts.items() and settings["XLA_FLAGS"] == os.environ["XLA_FLAGS"]
    assert set(settings) == {"XLA_FLAGS", "compiler options", "huge pages", "load"}
    assert re.fullmatch(r"[\d.]+ processes before, [\d.]+ after", settings["load"])
    for option in (program.options("cpu") or {}).values():
        assert option in settings["compiler options"]
    assert [row["key"] for row in rows] == ["mesh.data=1", "mesh.data=2", "mesh.data=64"]
    assert "does not fit 8 devices" in rows[2]["error"] and rows[2]["summary"] == {}
    assert [len(row["windows"]["ours"]) for row in rows[:2]] == [3, 3]
    s = rows[0]["summary"]
    assert s["flops_per_s"] == pytest.approx(s["images_per_s"] * rows[0]["hand_flops_per_image"])
    assert s["share_of_peak"] == pytest.approx(s["flops_per_s"] / facts["measured"]["float32"])
    assert s["bytes_per_s"] == pytest.approx(s["share_of_copy"] * facts["measured"]["bytes"])
    assert s["side"] in ("compute", "memory") and s["mfu"] is None


def test_the_page_stands_alone(sweep: tuple) -> None:
    html = (sweep[0] / "page/index.html").read_text()
    assert "mesh.data=64" in html and "does not fit 8 devices" in html
    assert html.count("data:image/svg+xml;base64,") == 4  # two pictures, light and dark
    links = re.findall(r'(?:src|srcset|href)="(.{5})', html)
    assert links and set(links) == {"data:"} and "<script" not in html


def test_compare_in_the_same_command(
    sweep: tuple, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    """Against steps that were a thousand times faster: exit code 1, and the cell is named."""
    folder, argv, _ = sweep
    old = json.loads((folder / "tiny.json").read_text())
    for key, one in old["figures"].items():
        if key.endswith("_ms") and one["value"]:
            one["value"] /= 1000
    (folder / "old.json").write_text(json.dumps(old | {"name": "old"}))
    peaks = {"float32": 1e9, "bfloat16": 1e9, "bytes": 1e9}
    monkeypatch.setattr(machine, "measured", lambda: peaks)
    again = ["--sweep=mesh.data=1", f"--compare={folder}/old.json"]
    assert benchmark.run([*argv[:-3], *again]) == 1
    out = capsys.readouterr().out
    assert re.search(r"slower +mesh\.data=1 ", out)
    assert re.search(r"absent +mesh\.data=2 ", out)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--sweep=batchh=20"], "batchh=20: unknown field; nearest: batch"),
        (["--sweep=;"], "sweep=;: no field in it"),
        (["--sweep=batch"], "sweep=batch: want FIELD=VALUE"),
        (["--sweep=batch=20,,30"], "sweep=batch=20,,30: want FIELD=VALUE"),
        (["--sweep=batch=20,20"], "sweep: batch=20 is there twice"),
        (["--sweep=batch=1;batch=2"], "batch is there twice"),
        (["--sweep=batch=many"], "batch=many: want int"),
        (["--sweep=batch=-1"], "batch=-1: want a number > 0"),
        (["--sweep=mesh.data=64"], "mesh.data=64: 64 does not fit 8 devices; nearest that fits: 8"),
        (["--target=v9:2x2"], "target=v9:2x2: want CHIP:AxB or AxBxC, such as v5e:16x16"),
        (["--peer=tensorflow"], "peer=tensorflow: unknown; "),
        (["--rounds=0"], "rounds"),
        (["--compare=nothing.json"], "nothing.json: No such file"),
        (["--compare=results/digits.json"], "has none of these cells"),
        (
            ["--startup", "--config.steps_per_call=7", "--rounds=1"],
            "want a multiple of steps_per_call=7",
        ),
    ],
)
def test_bad_input_is_one_line(words: list[str], message: str) -> None:
    with pytest.raises(UserError, match=re.escape(message)) as caught:
        benchmark.run(["benchmark.py", f"--config={DIGITS}", *words])
    assert "\n" not in str(caught.value)
