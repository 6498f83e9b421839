"""Who may import whom (daemon -> routers, daemon -> models, nothing back or across), and what serving must not load."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
FORBIDDEN = {"routers": {"daemon", "models"}, "models": {"daemon", "routers"}}
TRAINING_ONLY = {"matplotlib", "onnx", "pandas", "pyarrow", "scipy", "sklearn", "torch"}
TRAINING_ROOMS = {
    *(ROOT / "routers" / name for name in ("training", "evaluation")),
    *(ROOT / "daemon" / name for name in ("learn.py", "tools/golden.py", "tools/rule.py")),
}
"""Folders, and the commands that train; what imports one of them is seen to load it."""


@pytest.mark.parametrize("package", FORBIDDEN)
def test_routers_and_models_import_neither_the_daemon_nor_each_other(package: str) -> None:
    backwards = {
        f"{path.relative_to(ROOT)} imports {name}"
        for path in (ROOT / package).rglob("*.py")
        for name in imports(path)
        if name in FORBIDDEN[package]
    }
    assert not backwards


def test_only_training_and_evaluation_import_what_only_they_need() -> None:
    heavy = {
        f"{path.relative_to(ROOT)} imports {name}"
        for package in ("daemon", "models", "routers")
        for path in (ROOT / package).rglob("*.py")
        if not TRAINING_ROOMS.intersection([path, *path.parents])
        for name in imports(path)
        if name in TRAINING_ONLY
    }
    assert not heavy


def test_serving_loads_no_training_library_through_anything_it_imports() -> None:
    modules = [
        ".".join(path.relative_to(ROOT).with_suffix("").parts)
        for package in ("daemon", "models", "routers")
        for path in (ROOT / package).rglob("*.py")
        if not TRAINING_ROOMS.intersection([path, *path.parents]) and not path.name.startswith("__")
    ]
    script = f"import sys, {', '.join(modules)}; print(*({TRAINING_ONLY!r} & set(sys.modules)))"
    loaded = subprocess.run([sys.executable, "-c", script], cwd=ROOT, capture_output=True, text=True)
    assert (loaded.returncode, loaded.stdout.strip()) == (0, ""), loaded.stderr


def imports(path: Path) -> set[str]:
    """Top-level packages that a file imports anywhere, also inside functions."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            found |= {alias.name.partition(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
            found.add(node.module.partition(".")[0])
    return found
