"""The package's layering, read off its imports."""

import ast
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parents[1] / "mpi_rl"
ROWS = {
    "__main__": 7,
    "bench": 5,
    "bench_ranks": 5,
    "server": 4,
    "a3c": 4,
    "genkidama": 4,
    "commands": 6,
    "agent": 3,
    "collect": 3,
    "submit": 3,
    "record": 4,
    "evaluate": 4,
    "bench_imports": 2,
    "recorder": 2,
    "inspect": 2,
    "mlp": 2,
    "convnet": 2,
    "torchnet": 2,
    "standing": 2,
    "group": 2,
    "config": 1,
    "envs": 1,
    "networks": 1,
    "losses": 1,
    "returns": 1,
    "updates": 1,
    "transport": 1,
    "growth": 1,
    "lock": 1,
    "runfile": 1,
    "progress": 1,
    "flappy_bird": 0,
    "fused": 0,
    "bell": 0,
    "timing": 0,
    "__init__": 0,
}
HOMES = {
    "mpi4py": {"transport", "group", "evaluate", "bench_ranks", "bench_imports", "__main__"},
    "h5py": {"runfile"},
    "torch": {"torchnet", "bench_imports"},
    "gymnasium": {"envs", "flappy_bird"},
    "flappy_bird_gymnasium": {"flappy_bird"},
    "ale_py": {"envs", "bench_imports"},
    "rich": {"progress"},
    "click": {"commands"},
    "PIL": {"record"},
    "ml_dtypes": {"transport"},
    "matplotlib": set(),
    "scipy": set(),
}


def imports(path):
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path.name}: relative import"
            yield from (
                [f"mpi_rl.{alias.name}" for alias in node.names]
                if node.module == "mpi_rl"
                else [node.module]
            )


@pytest.mark.parametrize("path", sorted(PACKAGE.glob("*.py")), ids=lambda path: path.stem)
def test_imports_point_down_and_third_parties_stay_home(path):
    for name in imports(path):
        top, _, module = name.partition(".")
        if top == "mpi_rl":
            module = module if module in ROWS else "__init__"
            assert ROWS[module] < ROWS[path.stem], f"{path.stem} imports {module}"
        elif top in HOMES:
            assert path.stem in HOMES[top], f"{path.stem} imports {top}"


def test_analysis_reads_runs_through_the_reader_only():
    for path in (PACKAGE.parent / "analysis").glob("*.py"):
        assert "h5py" not in {name.partition(".")[0] for name in imports(path)}
