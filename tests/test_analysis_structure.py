"""The shape of analysis/, read off its imports and sizes."""

import ast

import pytest

from tests.ranks import ROOT

FLOORS = {"statistics": 1, "runs": 1, "figures": 2, "tables": 2, "queue_model": 2}
# All other modules are studies.
STUDY = 3
MOST_LINES, MOST_LINES_OF_A_FUNCTION = 350, 60
MODULES = sorted((ROOT / "analysis").glob("*.py"))


def imports(path):
    """Every module that a file imports, and what it takes from the package ``analysis``."""
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path.name}: relative import"
            yield from (
                [f"analysis.{alias.name}" for alias in node.names]
                if node.module == "analysis"
                else [node.module]
            )


def test_the_shared_modules_are_there():
    assert {*FLOORS} < {path.stem for path in MODULES}


@pytest.mark.parametrize("path", MODULES, ids=lambda path: path.stem)
def test_imports_point_down_and_no_study_imports_another(path):
    for name in imports(path):
        top, _, module = name.partition(".")
        if top == "analysis":
            below, here = FLOORS.get(module, STUDY), FLOORS.get(path.stem, STUDY)
            assert below < here, f"{path.stem} imports {module}"


def test_runs_are_read_through_the_reader_only():
    for path in MODULES:
        assert "h5py" not in {name.partition(".")[0] for name in imports(path)}, path.stem


def test_the_package_does_not_import_analysis():
    for path in (ROOT / "mpi_rl").rglob("*.py"):
        assert "analysis" not in {name.partition(".")[0] for name in imports(path)}, path.stem


@pytest.mark.parametrize("path", MODULES, ids=lambda path: path.stem)
def test_modules_and_functions_are_short(path):
    text = path.read_text()
    assert len(text.splitlines()) <= MOST_LINES
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.FunctionDef):
            assert node.end_lineno - node.lineno < MOST_LINES_OF_A_FUNCTION, node.name
