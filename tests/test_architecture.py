"""The layout: imports go down only, class names are unique, help is light."""

from __future__ import annotations

import ast
import io
import re
import resource
import subprocess
import sys
import tokenize
from collections import Counter
from pathlib import Path

import pytest

PACKAGE = Path(__file__).resolve().parent.parent / "fercache"
FILES = sorted(PACKAGE.rglob("*.py"))

ORDER = ("errors", "runtime", "heads.registry", "backbones.registry", "metrics", "config", "workspace", "run_log",
         "media", "data", "recipe", "backbones", "faces", "store", "oof", "results", "heads", "logits_import",
         "extraction", "training", "stacking", "diagnostics", "maintenance", "viz", "inference", "cli", "__main__")
"""Folders and modules of the package, in the order of the pipeline: each imports only what stands before it.

The registries of heads and backbones have names and settings only, without a net, so that the configuration can offer
them. So has `metrics`: the choices of --metric are those that it registers.
"""

FORBIDDEN = frozenset((
    "said", "says", "say", "speak", "speaks", "spoken", "voice", "heard", "told", "tell", "page", "plant", "crew",
    "mixer", "brake", "gauge", "sheet", "judge", "care", "waste", "doubt", "whom", "looks", "shares"))

HEAVY = ("av", "h5py", "lightgbm", "matplotlib", "onnxruntime", "openvino", "plotly", "pyarrow", "sklearn", "torch",
         "torchvision", "zarr")


def part_of(module: str) -> str:
    """Return the folder or top-level module that a dotted name below fercache belongs to, "" for the package."""
    inner = module.partition(".")[2]
    return inner if inner in ORDER else inner.split(".")[0]


def module_of(path: Path) -> str:
    """Return a file's dotted name."""
    parts = ("fercache", *path.relative_to(PACKAGE).with_suffix("").parts)
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


MODULES = {module_of(path): path for path in FILES}
TREES = {path: ast.parse(path.read_text()) for path in FILES}


def imported(path: Path, *, at_runtime: bool = False) -> set[str]:
    """Return the modules of fercache that a file imports, inside functions too.

    Parameters
    ----------
    at_runtime : leave out what is imported for type checkers only.
    """
    tree = TREES[path]
    typing_only: set[ast.AST] = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.If) and isinstance(node.test, ast.Name) and node.test.id == "TYPE_CHECKING":
            typing_only.update(child for part in node.body for child in ast.walk(part))
    names: set[str] = set()
    for node in ast.walk(tree):
        if at_runtime and node in typing_only:
            continue
        if isinstance(node, ast.Import):
            names.update(alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: relative import"
            names.update(f"{node.module}.{alias.name}" if f"{node.module}.{alias.name}" in MODULES else str(node.module)
                         for alias in node.names)
    return {name for name in names if name in MODULES}


@pytest.mark.parametrize("path", FILES, ids=lambda p: str(p.relative_to(PACKAGE)))
def test_imports_go_down(path: Path) -> None:
    here = part_of(module_of(path))
    if not here:  # the package itself offers functions of several parts
        return
    for name in imported(path):
        there = part_of(name)
        assert not there or there == here or ORDER.index(there) < ORDER.index(here), f"{here} imports {there} ({name})"


def test_every_part_has_a_place_in_the_order() -> None:
    assert {part_of(name) for name in MODULES} - {""} == set(ORDER)


def test_no_module_imports_itself_through_others() -> None:
    graph = {name: imported(path, at_runtime=True) - {name, "fercache"} for name, path in MODULES.items()}
    while ready := {name for name, needs in graph.items() if not needs & graph.keys()}:
        graph = {name: needs for name, needs in graph.items() if name not in ready}
    assert not graph, f"a cycle among {sorted(graph)}"


def test_class_names_are_unique() -> None:
    names = Counter(node.name for tree in TREES.values() for node in ast.walk(tree)
                    if isinstance(node, ast.ClassDef) and not node.name.startswith("_"))
    assert not [name for name, times in names.items() if times > 1]


def test_names_hold_no_word_of_a_private_language() -> None:
    """The words that version 0.1 had made its own; a metaphor in a name needs a glossary."""
    found: Counter[str] = Counter()
    for path in FILES:
        for token in tokenize.generate_tokens(io.StringIO(path.read_text()).readline):
            if token.type == tokenize.NAME:
                parts = re.findall(r"[a-z]+|[A-Z][a-z]*", token.string)
                found.update(f"{path.name}: {token.string}" for part in parts if part.lower() in FORBIDDEN)
    assert not found


def test_every_folder_says_what_it_does_and_where_to_begin() -> None:
    for path in FILES:
        if path.name == "__init__.py" and path.parent != PACKAGE:
            text = ast.get_docstring(TREES[path]) or ""
            assert "first" in text, f"{path}: the docstring names no file to open first"


def test_help_imports_nothing_heavy() -> None:
    code = f"import sys; from fercache.cli import main; print([name for name in {HEAVY} if name in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True)
    assert done.stdout.strip() == "[]"


def test_help_is_quick() -> None:
    """Best of three, in seconds of the processor: the machine may be busy, the program may not."""
    def once() -> float:
        before = resource.getrusage(resource.RUSAGE_CHILDREN)
        subprocess.run([sys.executable, "-m", "fercache", "--help"], check=True, capture_output=True)
        after = resource.getrusage(resource.RUSAGE_CHILDREN)
        return after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    assert min(once() for _ in range(3)) < 0.6


def test_only_the_workspace_knows_the_layout_of_the_cache() -> None:
    """A folder or pointer of `cache/` is joined to a path nowhere else."""
    joined = re.compile(r"""/ f?"(features|logits|heads|stack|index|thumbs|weights|clips|imported|current\.json)\b""")
    named = [f"{module_of(path)}: {line.strip()}" for path in FILES if path.name != "workspace.py"
             for line in path.read_text().splitlines() if joined.search(line)]
    assert not named
