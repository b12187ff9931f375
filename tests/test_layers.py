"""The house: imports go down, one dependency has one door, and the front door is light."""

from __future__ import annotations

import ast
import resource
import subprocess
import sys
from pathlib import Path

import pytest

PACKAGE = Path(__file__).resolve().parent.parent / "fercache"

FLOORS = {
    0: "errors prefetch progress",
    1: "durable config taps labelmaps colours place parquet",
    2: "recipe wheels facenet cores crops metrics smoothing folds people rates preds runs",
    3: "mtcnn media weights store logits datasets gaps views told",
    4: "backbones faces follow heads windows demo imported thumbs",
    5: "extract train_heads stack care timeline check submit score facts overlay transfer",
    6: "engines predict ablation audit report card doctor",
    7: "cli",
}
FLOOR = {room: floor for floor, rooms in FLOORS.items() for room in rooms.split()}

DOORS = {
    "av": {"media"}, "zarr": {"store"}, "h5py": {"logits", "transfer"}, "lightgbm": {"stack"}, "sklearn": {"stack"},
    "matplotlib": {"timeline"}, "facenet_pytorch": {"facenet"}, "torchvision": {"facenet"}, "click": {"cli"},
    "tensorboard": {"weights"}, "onnxruntime": {"backbones"}, "openvino": {"backbones"},
    "pyarrow": {"stack", "parquet", "transfer"},
    "PIL": {"media", "crops", "timeline", "views", "thumbs", "overlay"},
    "rich": {"progress", "stack", "cli", "score", "doctor"},
    "distributed": {"engines"},
    "plotly": {"report"}, "jinja2": {"report"}, "markupsafe": {"report"},
    "torch": {"facenet", "mtcnn", "weights", "cores", "backbones", "faces", "heads", "windows", "train_heads"},
}
STANDARD = set(sys.stdlib_module_names) | {"numpy", "safetensors", "fercache", "__future__", "fsspec"}


def room_of(path: Path) -> str:
    """Return the room a file belongs to; the package's front page is room ``""``."""
    name = path.relative_to(PACKAGE).parts[0].removesuffix(".py")
    return "" if name in ("__init__", "__main__") else name


def imports(path: Path) -> list[str]:
    """Return every dotted name that a file imports, inside functions too."""
    found: list[str] = []
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            found += [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: relative import"
            found += [f"{node.module}.{alias.name}" for alias in node.names]
    return found


FILES = sorted(PACKAGE.rglob("*.py"))


@pytest.mark.parametrize("path", FILES, ids=lambda p: str(p.relative_to(PACKAGE)))
def test_imports_go_down_and_through_doors(path: Path) -> None:
    room = room_of(path)
    for name in imports(path):
        top, _, rest = name.partition(".")
        if top == "fercache":
            other = rest.split(".")[0]
            if other in FLOOR and room and other != room:
                assert FLOOR[other] < FLOOR[room], f"{room} ({FLOOR[room]}) imports {other} ({FLOOR[other]})"
        elif top not in STANDARD:
            assert room in DOORS.get(top, set()), f"{room} imports {top}, whose doors are {DOORS.get(top)}"


def test_every_room_has_a_floor() -> None:
    rooms = {room_of(path) for path in FILES} - {""}
    assert rooms == set(FLOOR), f"not on a floor: {rooms - set(FLOOR)}; not there: {set(FLOOR) - rooms}"


def test_no_module_is_long() -> None:
    long = {str(p.relative_to(PACKAGE)): n for p in FILES if (n := len(p.read_text().splitlines())) > 300}
    assert not long


def _body_lines(node: ast.FunctionDef | ast.AsyncFunctionDef) -> int:
    first = node.body[1] if ast.get_docstring(node) and len(node.body) > 1 else node.body[0]
    return (node.end_lineno or 0) - first.lineno + 1


def test_bodies_are_short() -> None:
    sizes = [_body_lines(node) for path in FILES for node in ast.walk(ast.parse(path.read_text()))
             if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)]
    assert max(sizes) <= 60
    assert sorted(sizes)[int(0.95 * len(sizes))] <= 30


@pytest.mark.parametrize("door", sorted(set(DOORS) - {"click"}))
def test_help_imports_nothing_heavy(door: str) -> None:
    code = f"import sys; from fercache.cli import main; sys.exit({door!r} in sys.modules and {door!r} != 'rich')"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_help_is_quick() -> None:
    """Best of three, in seconds of the processor: the machine may be busy, the program may not."""
    def once() -> float:
        before = resource.getrusage(resource.RUSAGE_CHILDREN)
        subprocess.run([sys.executable, "-m", "fercache", "--help"], check=True, capture_output=True)
        after = resource.getrusage(resource.RUSAGE_CHILDREN)
        return after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    assert min(once() for _ in range(3)) < 0.6
