"""Training steps compiled for pods, data parallel and with fsdp=8, and weak scaling.

python -m benchmarks.aot --data_dir=DIR --out=results/aot.json

A batch that does not divide by the number of devices becomes the next one that does. Weak scaling
is configs/mnist.py with 16 images a device. Needs libtpu (the extra tpu-aot). An interrupted
measurement goes on with the cells that its file lacks.
"""

import dataclasses
import pathlib

from benchmarks import common, target
from vae_jax import config as config_lib
from vae_jax.report import pictures
from vae_jax.tools import results

CELLS = (
    "configs/*.py@v5e:16x16",
    "configs/imagenet64.py@v5p:8x8x8",
    "configs/imagenet64.py@v6e:16x16",
    "weak",
)
WEAK = ("v5p:2x2x2", "v5p:4x4x4", "v5p:8x8x8")  # 8, 64 and 512 chips
WEAK_IMAGES = 16  # a device


@dataclasses.dataclass
class Compiler:
    """Compiles one cell after the other and writes the figures of all after each."""

    data_dir: str
    recorder: common.Recorder
    figures: common.FIGURES

    def compile(
        self, name: str, path: str, topology: str, *, fsdp: int = 1, images: int | None = None
    ) -> None:
        """Add the figures of one config on one topology; ``images``: of a device's batch."""
        if f"{name}_fits" in self.figures:
            return
        c = config_lib.load(path)
        c.data.dir = self.data_dir
        c.mesh.fsdp = fsdp
        devices = len(target.devices(topology)[0])
        c.batch = devices * (images or max(1, -(-c.batch // devices)))
        c.data.labelled_batch = devices * -(-c.data.labelled_batch // devices)
        row = target.measure(c, topology)
        print(target.words(name, row), flush=True)
        moved = sum(one["bytes"] for one in row["collectives"].values()) / 1e6
        self.figures.update(target.figures(name, row))
        self.figures[f"{name}_collectives"] = results.figure(moved, "MB / step")
        self.recorder.write(None, self.figures)

    def compile_configs(self, pattern: str, topology: str) -> None:
        """Every config file of a pattern, data parallel and with fsdp=8."""
        for path in sorted(pathlib.Path().glob(pattern)):
            if "def get_config" not in path.read_text():
                continue
            name = f"{path.stem}_{topology.replace(':', '_')}"
            self.compile(f"{name}_dp", str(path), topology)
            self.compile(f"{name}_fsdp", str(path), topology, fsdp=8)

    def weak_scaling(self) -> None:
        """The same work a device on 8, 64 and 512 chips, and how far the figures are apart."""
        rows = {}
        for topology in WEAK:
            devices = len(target.devices(topology)[0])
            name = f"weak_{devices}"
            self.compile(name, "configs/mnist.py", topology, images=WEAK_IMAGES)
            keys = ("flops", "wire", "collectives")
            rows[devices] = {key: self.figures[f"{name}_{key}"]["value"] for key in keys}
        for key in ("flops", "collectives"):
            values = [row[key] for row in rows.values()]
            spread = max(values) / min(values) - 1
            self.figures[f"weak_{key}_spread"] = results.figure(spread, "relative", n=len(values))
        draw_weak(rows, pathlib.Path(self.recorder.out).with_name("weak_scaling.png"))


def draw_weak(rows: dict[int, dict[str, float]], path: pathlib.Path) -> None:
    """Write the picture of what a chip computes and sends in a step, by the number of chips."""
    page, axes = pictures.panels(2, 4, 2.6, top=0.35)
    chips = list(rows)
    titles = {"flops": "GFLOP / chip / step", "wire": "MB sent / chip / step"}
    for ax, (key, title) in zip(axes, titles.items(), strict=True):
        pictures.style_axes(ax, pictures.LIGHT)
        values = [row[key] for row in rows.values()]
        ax.plot(chips, values, "o-", color=pictures.LIGHT["train"], markersize=5, linewidth=1.2)
        ax.set_xscale("log", base=2)
        ax.set_xticks(chips, [str(n) for n in chips])
        ax.set_ylim(0, 1.25 * max(values))
        ax.set_title(title, fontsize=9, color=pictures.LIGHT["ink"], loc="left")
        ax.set_xlabel("chips, v5p", fontsize=8.5, color=pictures.LIGHT["muted"])
    path.write_bytes(pictures.figure_png(page))


def main() -> None:
    parser = common.parser(__doc__)
    parser.add_argument("--only", default=",".join(CELLS), help="some of the cells")
    parser.add_argument("--data_dir", default="", help="where the data is")
    args = parser.parse_args()
    recorder = common.Recorder("aot", args.out)
    compiler = Compiler(args.data_dir, recorder, recorder.earlier())
    for cell in args.only.split(","):
        if cell == "weak":
            compiler.weak_scaling()
        else:
            pattern, _, topology = cell.partition("@")
            compiler.compile_configs(pattern, topology)
    recorder.write(None, compiler.figures)


if __name__ == "__main__":
    common.script(main)
