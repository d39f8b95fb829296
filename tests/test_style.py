"""Rules of handwriting and of structure that a reader may rely on.

``EXEMPT`` counts, file by file, the places that do not keep a rule yet. It may only shrink: one
more place fails, and a count that is too high is a warning until it is lowered.
"""

import ast
import collections
import pathlib
import warnings

ROOT = pathlib.Path(__file__).parents[1]
PACKAGE = ROOT / "vae_jax"
MAX_ROOMS = 13
MAX_LINES = 60  # of a function, without its docstring
MAX_PARAMETERS = 7
MAX_TEST_LINES = 400
COMPILERS = {"jit", "pmap", "shard_map"}
EXEMPT = {
    "long functions": {},
    "functions of many parameters": {},
    "long test files": {},
    "tests that import tests": {},
}


def package_files() -> list[pathlib.Path]:
    return sorted(PACKAGE.rglob("*.py"))


def files_of_tests() -> list[pathlib.Path]:
    return sorted(ROOT.glob("tests/**/test_*.py"))


def name_of(path: pathlib.Path) -> str:
    return path.relative_to(ROOT).as_posix()


def functions(path: pathlib.Path) -> list[ast.FunctionDef]:
    """Every function of a file, methods and inner ones too."""
    nodes = ast.walk(ast.parse(path.read_text()))
    return [node for node in nodes if isinstance(node, ast.FunctionDef)]


def lines_of(function: ast.FunctionDef) -> int:
    """Lines without the docstring."""
    lines = function.end_lineno - function.lineno + 1
    if ast.get_docstring(function) is not None:
        docstring = function.body[0]
        lines -= docstring.end_lineno - docstring.lineno + 1
    return lines


def parameters_of(function: ast.FunctionDef) -> int:
    """Parameters without ``self`` and ``cls``."""
    arguments = function.args
    names = [one.arg for one in arguments.posonlyargs + arguments.args + arguments.kwonlyargs]
    return sum(name not in ("self", "cls") for name in names)


def imports(path: pathlib.Path) -> set[str]:
    """Dotted names that a file imports; ``from a import b`` gives ``a`` and ``a.b``."""
    names = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            names |= {node.module, *(f"{node.module}.{alias.name}" for alias in node.names)}
    return names


def users_of(library: str) -> set[str]:
    """Files of the package that import a library or a part of it."""
    users = set()
    for path in package_files():
        if any(f"{name}.".startswith(f"{library}.") for name in imports(path)):
            users.add(path.relative_to(PACKAGE).as_posix())
    return users


def check(rule: str, places: list[str]) -> None:
    """No more places break the rule than are exempt; ``places`` are "file" or "file:function"."""
    counts = collections.Counter(place.partition(":")[0] for place in places)
    exempt = EXEMPT[rule]
    for file, count in counts.items():
        wrong = [place for place in places if place.partition(":")[0] == file]
        assert count <= exempt.get(file, 0), f"{rule}: {wrong}"
    for file, count in exempt.items():
        if counts[file] < count:
            warnings.warn(f"EXEMPT[{rule!r}][{file!r}]: {counts[file]} is enough", stacklevel=2)


def test_no_function_is_long():
    wrong = []
    for path in package_files():
        for function in functions(path):
            if lines_of(function) > MAX_LINES:
                wrong.append(f"{name_of(path)}:{function.name}")
    check("long functions", wrong)


def test_no_function_has_many_parameters():
    wrong = []
    for path in package_files():
        for function in functions(path):
            if parameters_of(function) > MAX_PARAMETERS:
                wrong.append(f"{name_of(path)}:{function.name}")
    check("functions of many parameters", wrong)


def test_no_test_file_is_long():
    wrong = []
    for path in files_of_tests():
        if len(path.read_text().splitlines()) > MAX_TEST_LINES:
            wrong.append(name_of(path))
    check("long test files", wrong)


def test_no_test_file_imports_another():
    modules = set()
    for path in files_of_tests():
        modules.add(name_of(path).removesuffix(".py").replace("/", "."))
    wrong = [name_of(path) for path in files_of_tests() if imports(path) & modules]
    check("tests that import tests", wrong)


def test_benchmarks_import_no_tests():
    for path in ROOT.glob("benchmarks/**/*.py"):
        for name in imports(path):
            assert not f"{name}.".startswith("tests."), f"{name_of(path)} imports {name}"


def test_linen_is_in_nets_only():
    outside = {name for name in users_of("flax.linen") if not name.startswith("nets/")}
    assert outside == set()


def test_orbax_is_in_one_file():
    assert users_of("orbax") == {"train/checkpoint.py"}


def test_one_file_compiles():
    for path in package_files():
        if name_of(path) == "vae_jax/train/program.py":
            continue
        for node in ast.walk(ast.parse(path.read_text())):
            word = getattr(node, "attr", getattr(node, "id", getattr(node, "name", "")))
            assert word not in COMPILERS, f"{name_of(path)}:{node.lineno}: {word}"


def test_the_package_has_few_rooms():
    rooms = set()
    for path in package_files():
        rooms.add(path.relative_to(PACKAGE).parts[0].removesuffix(".py"))
    rooms.remove("__init__")
    assert len(rooms) <= MAX_ROOMS, sorted(rooms)
