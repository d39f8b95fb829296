"""Rules of the package: who imports whom, what is installed, where figures come from."""

import ast
import importlib.metadata
import json
import os
import pathlib
import re
import subprocess
import sys
import tomllib
from collections.abc import Iterator

import pytest

from vae_jax.config import UserError
from vae_jax.tools import results

ROOT = pathlib.Path(__file__).parents[1]
PACKAGE = ROOT / "vae_jax"
# A module imports only what stands before it (or within its own folder).
ORDER = (
    *("config", "ops", "mesh", "cli", "data", "distributions", "nets", "models", "objectives"),
    *("train", "report", "evaluate", "tools"),
)
HEAVY = {"tensorflow_datasets", "sklearn", "matplotlib", "grain", "PIL"}  # seconds to import
# A figure: a number with a unit. In README it stands between results marks, or beside its paper.
FIGURE = re.compile(r"\d\s*(%|nats|bits|images/s|ms|s|seconds|min|minutes|h|hours|GB|MB)(?![\w/])")


def modules() -> list[tuple[str, pathlib.Path, ast.Module]]:
    """[(its room: the first name after vae_jax, its path, its syntax tree)]."""
    rows = []
    for path in sorted(PACKAGE.rglob("*.py")):
        room = path.relative_to(PACKAGE).with_suffix("").parts[0]
        if room != "__init__":
            rows.append((room, path.relative_to(ROOT), ast.parse(path.read_text())))
    return rows


def imports(tree: ast.AST) -> Iterator[str]:
    """Dotted names that a module imports, wherever in it; 'from a import b' gives 'a.b'."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"line {node.lineno}: relative import; write vae_jax..."
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


def test_every_module_has_its_place_in_the_order():
    assert {room for room, _, _ in modules()} <= set(ORDER)


def test_imports_only_go_up_the_list():
    wrong = []
    for room, path, tree in modules():
        for name in imports(tree):
            top, _, rest = name.partition(".")
            other = rest.split(".")[0]
            if top == "vae_jax" and other in ORDER and ORDER.index(other) > ORDER.index(room):
                wrong.append(f"{path} imports {name}")
    assert not wrong, wrong


@pytest.mark.parametrize(
    ("library", "owner"), [("flax.linen", "nets"), ("orbax", "train/checkpoint")]
)
def test_a_library_has_one_address(library, owner):
    users = set()
    for _, path, tree in modules():
        for name in imports(tree):
            owned = str(path).startswith(f"vae_jax/{owner}")
            if f"{name}.".startswith(f"{library}.") and not owned:
                users.add(str(path))
    assert not users, f"only {owner} imports {library}"


def test_only_compile_compiles():
    names = {"jit", "shard_map", "pmap"}
    wrong = []
    for _, path, tree in modules():
        for node in ast.walk(tree):
            said = getattr(node, "attr", getattr(node, "id", getattr(node, "name", None)))
            if said in names and str(path) != "vae_jax/train/program.py":
                wrong.append(f"{path}:{getattr(node, 'lineno', '')} {said}")
    assert not wrong, wrong


def test_nothing_read_from_a_file_is_run():
    wrong = []
    for path in [p for _, p, _ in modules()] + [p.relative_to(ROOT) for p in ROOT.glob("*.py")]:
        tree = ast.parse((ROOT / path).read_text())
        banned = {"pickle", "dill", "cloudpickle", "marshal", "shelve", "joblib"}
        wrong += [f"{path} imports {n}" for n in imports(tree) if n.split(".")[0] in banned]
        for node in ast.walk(tree):
            if isinstance(node, ast.Call) and getattr(node.func, "id", "") in ("eval", "exec"):
                wrong.append(f"{path}:{node.lineno} {node.func.id}(")
            pickles = isinstance(node, ast.keyword) and node.arg == "allow_pickle"
            if pickles and getattr(node.value, "value", None) is not False:
                wrong.append(f"{path}:{node.lineno} allow_pickle")
    assert not wrong, wrong


def test_heavy_libraries_are_imported_where_they_are_used():
    wrong = []
    for _, path, tree in modules():
        for top in tree.body:
            if not isinstance(top, ast.Import | ast.ImportFrom):
                continue
            for name in imports(top):
                if name.split(".")[0] in HEAVY:
                    wrong.append(f"{path} imports {name} at the top")
    assert not wrong, wrong


def test_every_module_imports_without_tensorflow_and_without_warnings():
    names = [
        ".".join(path.with_suffix("").parts).removesuffix(".__init__")
        for _, path, _ in modules()
        if path.name != "__main__.py"
    ]
    code = "import importlib, sys\n"
    code += f"for name in {names!r}: importlib.import_module(name)\n"
    code += "assert 'tensorflow' not in sys.modules\n"
    done = subprocess.run(
        [sys.executable, "-W", "error::DeprecationWarning", "-c", code],
        cwd=ROOT,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0 and not done.stderr, done.stderr


def canonical(name: str) -> str:
    """A distribution's name as PEP 503 compares it."""
    return re.sub(r"[-_.]+", "-", name).lower()


def pinnable(lines: list[str]) -> dict[str, str]:
    """{distribution: line}, names in their canonical form, of lines as pip reads them."""
    lines = [line.partition("#")[0].strip() for line in lines]
    return {canonical(re.match(r"[\w.-]+", line)[0]): line for line in lines if line}


def requirements(name: str) -> dict[str, str]:
    """{distribution: line} of a requirements file."""
    return pinnable((ROOT / name).read_text().splitlines())


def extras() -> dict[str, list[str]]:
    """{extra: its requirements} of pyproject.toml."""
    return tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"]


def test_requirements_cover_every_import():
    wanted = requirements("requirements.txt")
    owners = importlib.metadata.packages_distributions()
    trees = [tree for _, _, tree in modules()]
    trees += [ast.parse(p.read_text()) for p in [*ROOT.glob("*.py"), *ROOT.glob("configs/*.py")]]
    ours = {"vae_jax", "benchmarks", *(p.stem for p in ROOT.glob("*.py")), "configs"}
    used = {name.split(".")[0] for tree in trees for name in imports(tree)}
    for name in used - set(sys.stdlib_module_names) - ours:
        dists = set(map(canonical, owners.get(name, [])))
        assert dists & set(wanted), f"{name}: not in requirements.txt"


def test_the_lock_pins_every_requirement():
    wanted = {
        "requirements.lock": requirements("requirements.txt"),
        "requirements-test.lock": pinnable(extras()["test"]),
        "docs/requirements.lock": pinnable(extras()["docs"]),
    }
    for lock, names in wanted.items():
        pinned = requirements(lock)
        assert set(names) <= set(pinned), lock
        for line in pinned.values():
            assert re.fullmatch(r"[\w.-]+==[\w.]+( ; .*)?", line), line


def test_the_top_has_one_requirements_file_and_two_locks():
    names = {path.name for path in ROOT.glob("*requirements*")}
    assert names == {"requirements.txt", "requirements.lock", "requirements-test.lock"}
    assert set(extras()) == {
        *("test", "docs", "peers", "hf", "wandb", "mlflow", "scenes", "store", "tpu-aot"),
    }


# --- figures: vae_jax.tools.results and README ---


@pytest.fixture
def folder(tmp_path):
    """A Markdown file beside results/a.json and results/b.json."""
    (tmp_path / "results").mkdir()
    for name, value in (("a", 0.98125), ("b", 0.5)):
        results.write(
            tmp_path / "results" / f"{name}.json",
            command="python train.py",
            config=None,
            seed=0,
            seconds=1,
            figures={
                "accuracy": results.figure(value, "", n=320),
                "elbo": results.figure(-20.123, "nats", sd=0.0312, n=5),
            },
        )
    return tmp_path


def test_a_result_holds_its_origin_and_reads_back(folder):
    one = results.read(folder / "results/a.json")
    assert one["name"] == "a" and one["versions"]["jax"] and "cores" in one["device"]
    assert one["figures"]["elbo"] == {"value": -20.123, "unit": "nats", "sd": 0.0312, "n": 5}


def test_a_result_does_not_name_the_home_of_who_made_it(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", "/home/me")
    config = {"data": {"dir": "/home/me/data", "size": [1, 2]}, "init_from": "/home/mean/run"}
    options = {"command": "x", "seed": 0, "seconds": 1, "figures": {"a": results.figure(1.0, "")}}
    written = results.write(tmp_path / "a.json", config=config, **options)
    assert written["config"]["data"] == {"dir": "~/data", "size": [1, 2]}
    assert written["config"]["init_from"] == "/home/mean/run"


def test_no_published_file_names_a_home():
    for path in sorted((ROOT / "results").glob("*.json")):
        assert not re.search(r'"/(root|home)/', path.read_text()), path.name


def test_blocks_and_spans_are_made_from_the_files(folder):
    text = """Before <!-- r:a.accuracy:.1% -->old<!-- /r --> after.
<!-- results: a b="B, too" | accuracy elbo="test ELBO" -->
old
<!-- /results -->
<!-- results: a | elbo -->
<!-- /results -->
"""
    made = """Before <!-- r:a.accuracy:.1% -->98.1%<!-- /r --> after.
<!-- results: a b="B, too" | accuracy elbo="test ELBO" -->
|  | accuracy | test ELBO, nats |
|---|---|---|
| a | 0.9812 | -20.123 ± 0.031 |
| B, too | 0.5 | -20.123 ± 0.031 |
<!-- /results -->
<!-- results: a | elbo -->
|  | a |
|---|---|
| elbo, nats | -20.123 ± 0.031 |
<!-- /results -->
"""
    assert results.render(text, folder / "results") == made
    readme = folder / "README.md"
    readme.write_text(text)
    with pytest.raises(UserError, match="out of date"):
        results.main(["--check", str(readme)])
    results.main([str(readme)])
    assert readme.read_text() == made
    results.main(["--check", str(readme)])


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"seed": "x"}, "seed='x': want int or list or null"),
        ({"name": "c"}, "name=c: want a"),
        ({"extra": 1}, "want exactly name, command"),
        ({"settings": {"XLA_FLAGS": 1}}, "settings.XLA_FLAGS=1: want str"),
        ({"figures": {}}, "want one at least"),
        ({"figures": {"k": {"value": 1}}}, "figures.k: has value; want exactly value, unit, sd, n"),
        ({"figures": {"k": results.figure(float("nan"), "")}}, "value=nan: want a finite number"),
    ],
)
def test_a_broken_result_is_refused_in_one_line(folder, change, message):
    path = folder / "results/a.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | change))
    with pytest.raises(UserError, match=re.escape(message)) as caught:
        results.read(path)
    assert "\n" not in str(caught.value)


def test_an_unknown_figure_or_file_is_named(folder):
    for text, message in (("a.loss", "a.loss: no such figure"), ("c.loss", "c.json: No such file")):
        with pytest.raises(UserError, match=message):
            results.render(f"<!-- r:{text} --><!-- /r -->", folder / "results")


def test_every_published_result_is_valid():
    for path in ROOT.glob("results/*.json"):
        results.read(path)


def git(*words: str) -> subprocess.CompletedProcess:
    return subprocess.run(["git", "-C", str(ROOT), *words], capture_output=True, text=True)


def test_the_commit_of_every_published_result_is_in_the_history():
    """Or a note of the result says why it is not."""
    if git("rev-parse", "--is-shallow-repository").stdout.strip() != "false":
        pytest.skip("needs the whole history")
    for path in ROOT.glob("results/*.json"):
        one = results.read(path)
        commit = (one["commit"] or "HEAD").partition("+")[0]
        known = git("merge-base", "--is-ancestor", commit, "HEAD").returncode == 0
        assert known or one.get("commit_note"), f"{path.name}: {commit} is not in the history"


PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_every_figure_of_a_page_comes_from_results(page):
    text = page.read_text()
    assert results.render(text, ROOT / "results") == text, "run python docs/figures.py"
    text = results.SPAN.sub("", results.BLOCK.sub("", text))
    text = re.sub(r"```.*?```|`[^`\n]*`", "", text, flags=re.S)
    loose = [
        line
        for line in text.splitlines()
        if FIGURE.search(line) and not re.search("arxiv|published", line, re.I)
    ]
    assert not loose, f"figures outside results marks: {loose}"


def test_ci_runs_the_command_that_people_run():
    script = ROOT / ".ci/run"
    assert os.access(script, os.X_OK) and "make test" in script.read_text()
