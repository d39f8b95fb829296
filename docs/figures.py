"""Write the figures of README.md and docs/*.md again from results/*.json.

    python docs/figures.py [--check]

The marks are those of :mod:`vae_jax.tools.results`. ``--check`` writes nothing and exits 1 where a
page is out of date.
"""

import pathlib
import sys

ROOT = pathlib.Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))


def pages() -> list[pathlib.Path]:
    """Every Markdown page that may hold figures."""
    return [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]


def main(check: bool) -> int:
    """Render every page; the exit code."""
    from vae_jax.config import UserError
    from vae_jax.tools import results

    code = 0
    for page in pages():
        old = page.read_text()
        try:
            new = results.render(old, ROOT / "results")
        except UserError as error:
            print(f"error: {page.relative_to(ROOT)}: {error}", file=sys.stderr)
            return 2
        if new == old:
            continue
        if check:
            print(f"{page.relative_to(ROOT)}: out of date; run python docs/figures.py")
            code = 1
        else:
            page.write_text(new)
    return code


if __name__ == "__main__":
    sys.exit(main("--check" in sys.argv[1:]))
