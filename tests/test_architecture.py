"""The structure of the package, read off its files: floors, homes, sizes, siblings."""

import ast
import dataclasses
import difflib
from pathlib import Path

import pytest

from mpi_rl.algorithms.choice import ALGORITHMS
from mpi_rl.config import Config

PACKAGE = Path(__file__).parents[1] / "mpi_rl"
FLOORS = (  # from the bottom; a file imports from floors below its own, and its folder's files
    {"__init__", "errors"},
    {"settings", "compiled"},
    {"config"},
    {"envs", "networks", "transport", "jobs"},
    {"learning", "records"},
    {"server"},
    {"algorithms"},
    {"bench"},
    {"commands"},
    {"__main__"},
)
HOMES = {  # folders or files
    "mpi4py": {
        *("transport/links", "transport/waiting", "algorithms/worker", "algorithms/group"),
        *("commands/train", "commands/run", "commands/evaluate", "commands/launch"),
        *("bench/ranks", "bench/imports"),
    },
    "h5py": {"records/runfile"},
    "torch": {"networks/torchnet"},
    "gymnasium": {"envs/tasks", "envs/flappy_bird"},
    "flappy_bird_gymnasium": {"envs/flappy_bird"},
    "ale_py": {"envs/ale", "envs/make", "bench/imports"},
    "rich": {"server/progress"},
    "click": {"commands"},
    "PIL": {"commands/record"},
    "ml_dtypes": {"transport/slots"},
    "matplotlib": {"commands/learning_curves"},
    "scipy": {"records/curves"},
}
FILES = sorted(PACKAGE.glob("**/*.py"))
MOST_LINES, MOST_LINES_OF_A_FUNCTION = 350, 60


def name_of(path):
    return str(path.relative_to(PACKAGE).with_suffix(""))


def floor_of(name):
    return next(i for i, floor in enumerate(FLOORS) if name.split("/")[0] in floor)


def imports(path):
    """Yield the modules that a file imports anywhere: its own package's by file, as a/b."""
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path.name}: relative import"
            parts = node.module.split(".")
            if parts[0] != "mpi_rl":
                yield node.module
            elif (PACKAGE.joinpath(*parts[1:]) / "__init__.py").exists():  # from a folder: files
                yield from ("mpi_rl/" + "/".join([*parts[1:], each.name]) for each in node.names)
            else:
                yield "/".join(parts)


def ours(path):
    return {name.partition("/")[2] for name in imports(path) if name.startswith("mpi_rl/")}


@pytest.mark.parametrize("path", FILES, ids=name_of)
def test_imports_point_down_and_third_parties_stay_home(path):
    name = name_of(path)
    for other in ours(path):
        other = other if (PACKAGE / f"{other}.py").exists() else "__init__"  # __version__
        is_neighbour = "/" in name and other.split("/")[0] == name.split("/")[0]
        assert is_neighbour or floor_of(other) < floor_of(name), f"{name} imports {other}"
    for other in imports(path):
        homes = HOMES.get(other.partition(".")[0], {name})
        assert {name, name.split("/")[0]} & homes, f"{name} imports {other}"


def test_files_of_a_folder_import_one_another_without_circles():
    below = {name_of(path): ours(path) & {name_of(other) for other in FILES} for path in FILES}
    seen = set()

    def walk(name, way):
        assert name not in way, f"a circle: {' -> '.join([*way, name])}"
        if name not in seen:
            for other in below[name]:
                walk(other, [*way, name])
            seen.add(name)

    for name in below:
        walk(name, [])


@pytest.mark.parametrize("path", FILES, ids=name_of)
def test_files_and_functions_are_short(path):
    text = path.read_text()
    assert text.count("\n") <= MOST_LINES
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            length = node.end_lineno - node.lineno + 1
            assert length <= MOST_LINES_OF_A_FUNCTION, f"{node.name} has {length} lines"


def test_the_way_to_a_command_and_the_servers_loop_fit_a_screen():
    assert (PACKAGE / "__main__.py").read_text().count("\n") <= 60
    loop = ast.parse((PACKAGE / "server" / "loop.py").read_text())
    (serve,) = (node for node in loop.body if getattr(node, "name", "") == "serve")
    assert serve.end_lineno - serve.lineno + 1 <= 50 and len(serve.args.args) <= 6


def test_algorithms_are_siblings():
    a3c, genkidama = (
        (PACKAGE / "algorithms" / f"{name}.py").read_text().splitlines() for name in ALGORITHMS
    )
    lines = difflib.unified_diff(a3c, genkidama, n=0, lineterm="")
    changed = [line for line in lines if line[0] in "+-" and line[:3] not in ("+++", "---")]
    assert len(changed) <= 60


def test_an_algorithm_is_chosen_once():
    (setting,) = (item for item in dataclasses.fields(Config) if item.name == "algorithm")
    assert (*ALGORITHMS,) == setting.metadata["choices"]
    for path in FILES:
        for node in ast.walk(ast.parse(path.read_text())):
            compared = [node.left, *node.comparators] if isinstance(node, ast.Compare) else []
            names = [getattr(each, "attr", "") for each in compared]
            assert "algorithm" not in names, f"{name_of(path)} asks which algorithm it is"
