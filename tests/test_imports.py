"""The import order of the packages: nothing imports upwards, and nobody imports a verb."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

from leukocls.__main__ import VERBS

PACKAGE = Path(__file__).parents[1] / "leukocls"
# Each may import those before it, and itself.
ORDER = [
    "common", "data", "synthetic", "artifacts", "evaluation", "reporting", "models", "training",
    "inference", "tracking", "launch",
]  # fmt: skip
# Reading, judging and comparing results takes no torch, wherever it is imported from.
WITHOUT_TORCH = ("common", "synthetic", "artifacts", "evaluation", "reporting", "tracking")


def imports(path: Path) -> set[str]:
    """Dotted names that a file imports, at its top or anywhere in it."""
    names = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.ImportFrom):
            names |= {f"{node.module}.{alias.name}" for alias in node.names}
        elif isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
    return names


def edges() -> dict[str, set[str]]:
    """For each package, the others that it imports."""
    found: dict[str, set[str]] = {name: set() for name in ORDER}
    for path in PACKAGE.rglob("*.py"):
        package = path.relative_to(PACKAGE).parts[0]
        for name in imports(path):
            if package in found and name.startswith("leukocls.") and name.count(".") >= 1:
                found[package].add(name.split(".")[1])
    return {name: others - {name} for name, others in found.items()}


def test_no_package_imports_one_above_it() -> None:
    picture = edges()
    for name in ORDER:
        print(f"{name:11}→ {', '.join(sorted(picture[name] & {*ORDER}, key=ORDER.index)) or '–'}")
    upwards = {
        name: above
        for name, others in picture.items()
        if (above := {other for other in others if other in ORDER[ORDER.index(name) :]})
    }
    assert not upwards


def test_modules_and_functions_are_short() -> None:
    modules, functions = [], []
    for path in PACKAGE.rglob("*.py"):
        text, name = path.read_text(encoding="utf-8"), str(path.relative_to(PACKAGE))
        modules.append((text.count("\n"), name))
        functions += [
            (node.end_lineno - node.lineno + 1, f"{name}: {node.name}")
            for node in ast.walk(ast.parse(text))
            if isinstance(node, ast.FunctionDef) and node.end_lineno
        ]
    for longest in (sorted(modules)[-5:], sorted(functions)[-5:]):
        print(*(f"{lines:4} lines  {name}" for lines, name in reversed(longest)), sep="\n")
    assert max(modules)[0] <= 350
    assert max(functions)[0] <= 60


def test_every_package_is_in_the_order() -> None:
    folders = {path.parent.name for path in PACKAGE.glob("*/__init__.py")}
    assert folders == set(ORDER)


def test_the_list_of_verbs_is_what_stands_at_the_top() -> None:
    modules = {path.stem for path in PACKAGE.glob("*.py")} - {"__init__", "__main__"}
    assert modules == set(VERBS)


def verb_of(name: str) -> str:
    package, _, rest = name.partition(".")
    return rest.split(".")[0] if package == "leukocls" else ""


def test_nothing_imports_a_verb() -> None:
    files = [*PACKAGE.rglob("*.py"), *(PACKAGE.parent / "hydra_plugins").glob("*.py")]
    users = {
        str(path.relative_to(PACKAGE.parent)): used
        for path in files
        if (used := {name for name in imports(path) if verb_of(name) in VERBS})
    }
    assert not users


@pytest.mark.parametrize("package", WITHOUT_TORCH)
def test_a_package_that_needs_no_torch_has_none_at_its_top(package: str) -> None:
    for path in (PACKAGE / package).rglob("*.py"):
        top = ast.Module(ast.parse(path.read_text(encoding="utf-8")).body, [])
        names = {
            name
            for node in top.body
            if isinstance(node, ast.Import | ast.ImportFrom)
            for name in (
                [node.module or ""]
                if isinstance(node, ast.ImportFrom)
                else [alias.name for alias in node.names]
            )
        }
        assert not {"torch", "pytorch_lightning"} & {name.split(".")[0] for name in names}, path


def test_the_command_lists_its_verbs_and_runs_one() -> None:
    def command(*words: str) -> subprocess.CompletedProcess:
        return subprocess.run(
            [sys.executable, "-m", "leukocls", *words], capture_output=True, text=True
        )

    listed = command()
    assert listed.returncode == 0
    assert all(f"  {verb} " in listed.stdout for verb in VERBS)
    assert command("nothing").returncode == 2
    assert command("runs", "nowhere").returncode == 2
    assert command("evaluate", "--help").returncode == 0
