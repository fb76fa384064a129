"""Imports run down only: every module's first-party imports are among those that its room may have."""

import ast
import subprocess
import sys
from collections.abc import Iterator
from graphlib import TopologicalSorter
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]

# Room → the rooms that it may import. A room is a module or a package with all that lies in it.
TABLE: dict[str, set[str]] = {
    "core.errors": set(),
    "core.process": set(),
    "core.config": {"core.errors"},
    "core.images": {"core.errors"},
    "core.weights": {"core.errors"},
    "core.losses": set(),
    "core.features": {"core.errors", "core.weights"},
    "core.devices": {"core.config", "core.errors"},
    "core.tiles": {"core.features", "core.losses"},
    "core.shards": {"core.features", "core.tiles"},
    "core.pyramid": {
        "core.config",
        "core.errors",
        "core.features",
        "core.guides",
        "core.images",
        "core.losses",
        "core.shards",
        "core.tiles",
    },
    "core.noise": {"core.config", "core.images"},
    "core.parametrisation": {"core.config"},
    "core.guides": {"core.errors", "core.images", "core.parametrisation"},
    "core.colours": {"core.config", "core.images", "core.parametrisation"},
    "core.optimizers": set(),
    "core.steering": {"core.config", "core.errors"},
    "core.dials": {"core.config", "core.errors"},
    "core.checkpoint": {"core.config", "core.errors", "core.steering"},
    "core.samples": {"core.errors", "core.images"},
    "core.film": {"core.errors", "core.images"},
    "core.sweep": {"core.config", "core.dials", "core.errors"},
}
TABLE["core.planning"] = {
    f"core.{name}" for name in ("config", "devices", "errors", "features", "images", "pyramid", "tiles", "weights")
}
TABLE["core.transfer"] = set(TABLE) - {"core.process", "core.samples", "core.dials", "core.film", "core.sweep"}
TABLE |= {
    "core.studio.jobs": {"core.config", "core.errors", "core.steering"},
    "core.studio.files": {"core.studio.jobs"},
    "core.studio.store": {"core.config", "core.errors", "core.studio.files", "core.studio.jobs"},
    "core.studio.scheduler": {
        "core.config",
        "core.errors",
        "core.studio.files",
        "core.studio.jobs",
        "core.studio.store",
    },
    "core.studio.executors": {
        "core.film",
        "core.studio.jobs",
        "core.studio.scheduler",
        "core.transfer",
        *TABLE["core.transfer"],
    },
    "core.studio": {"core.config", "core.errors", "core.steering", "core.studio"},
    "core.cli": {"core.samples", "core.dials", "core.film", "core.sweep", "core.transfer", *TABLE["core.transfer"]},
    "core.__main__": {"core.cli", "core.errors", "core.process"},
    "ui.lab": {
        "core.config",
        "core.dials",
        "core.errors",
        "core.images",
        "core.samples",
        "core.steering",
        "core.studio",
        "core.sweep",
        "core.transfer",
        "core.weights",
    },
    "ui.bot": {"core.config", "core.dials", "core.errors", "core.images", "core.samples", "core.studio"},
    "ui": set(),
    "lab": {"core.errors", "core.process", "core.studio", "ui"},
    "tlbot": {"core.errors", "core.process", "core.studio", "ui"},
    "benchmarks": {"core"},
    "training": {"core"},
}
# Files that are part of another room: what only the pictures' room uses.
PART_OF = {"core._files": "core.images", "core._colour": "core.images"}
# The package itself holds the version, which anybody may know.
OPEN_TO_ALL = {"core"}
FIRST_PARTY = ("core", "ui", "lab", "tlbot", "benchmarks", "training", "tests", "configs")
WITHOUT_TORCH = [
    "core.errors",
    "core.config",
    "core.steering",
    "core.dials",
    "core.studio.jobs",
    "core.studio.files",
    "core.studio.store",
    "core.studio.scheduler",
]


def name_of(path: Path) -> str:
    parts = path.relative_to(ROOT).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


FOLDERS = ("core", "ui", "benchmarks", "training")
FILES = sorted([*ROOT.glob("*.py"), *(path for folder in FOLDERS for path in (ROOT / folder).rglob("*.py"))])
MODULES = {name_of(path): path for path in FILES}


def room_of(module: str) -> str:
    """The innermost room of the table that a module lies in."""
    module = PART_OF.get(module, module)
    while module and module not in TABLE:
        module = module.rpartition(".")[0]
    return module


def imports(module: str) -> Iterator[str]:
    """The first-party modules that a module imports, inside functions and for type checkers too."""
    path = MODULES[module]
    package = module if path.name == "__init__.py" else module.rpartition(".")[0]
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names if alias.name.split(".")[0] in FIRST_PARTY)
        elif isinstance(node, ast.ImportFrom):
            above = package.split(".")[: len(package.split(".")) + 1 - node.level] if node.level else []
            source = ".".join([*above, node.module] if node.module else above)
            if source.split(".")[0] in FIRST_PARTY:
                names = {f"{source}.{alias.name}" for alias in node.names}
                yield from (name if name in MODULES else source for name in names)


def is_inside(module: str, room: str) -> bool:
    return module == room or module.startswith(f"{room}.")


def is_allowed(module: str, imported: str) -> bool:
    room = room_of(module)
    return (
        imported in OPEN_TO_ALL or room_of(imported) == room or any(is_inside(imported, below) for below in TABLE[room])
    )


@pytest.mark.parametrize("module", sorted(set(MODULES) - OPEN_TO_ALL))
def test_a_module_imports_only_what_its_room_may(module: str) -> None:
    assert room_of(module), f"{module} lies in no room of the table"
    strangers = {imported for imported in imports(module) if not is_allowed(module, imported)}
    assert not strangers, f"{room_of(module)} may import only {sorted(TABLE[room_of(module)]) or 'nothing'}"


def test_the_table_runs_down_only() -> None:
    graph = {room: {o for o in TABLE if o != room and any(is_inside(o, b) for b in TABLE[room])} for room in TABLE}
    order = list(TopologicalSorter(graph).static_order())  # raises CycleError
    assert order.index("core.transfer") < order.index("core.studio") < order.index("ui.lab") < order.index("lab")


def test_this_test_sees_imports_of_every_form(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "losses.py"
    path.write_text(
        "import os, core.noise\n"
        "from core import images, __version__\n"
        "from core.config import Settings\n"
        "from . import tiles\n"
        "from .studio.jobs import Job\n"
        "def later():\n"
        "    from ui import lab\n"
        "    import benchmarks.textbook\n"
    )
    monkeypatch.setitem(MODULES, "core.losses", path)
    assert set(imports("core.losses")) == {
        "core.noise",
        "core.images",
        "core",
        "core.config",
        "core.tiles",
        "core.studio.jobs",
        "ui.lab",
        "benchmarks.textbook",
    }
    assert not is_allowed("core.losses", "core.noise")
    assert not is_allowed("core.noise", "core._files")
    assert is_allowed("core.noise", "core") and is_allowed("core.images", "core._files")


def test_the_page_on_architecture_names_every_room() -> None:
    page = (ROOT / "docs" / "architecture.md").read_text(encoding="utf-8")
    rows = [line for line in page.splitlines() if line.startswith("| `")]
    for room in sorted(set(TABLE) & set(map(room_of, MODULES))):
        path = room.replace(".", "/")
        if room.startswith(("core.", "ui.")) and "__" not in room:
            assert any(f"`{path}" in row for row in rows), f"{room} has no row in docs/architecture.md"


def python(script: str) -> list[str]:
    """Lines that a script prints in an interpreter of its own."""
    command = [sys.executable, "-c", script]
    return subprocess.run(command, cwd=ROOT, check=True, capture_output=True, text=True).stdout.splitlines()


def test_settings_and_the_queue_do_without_torch() -> None:
    script = f"import sys, {', '.join(WITHOUT_TORCH)}; print('torch' in sys.modules)"
    assert python(script) == ["False"]


def test_nothing_happens_on_import() -> None:
    rooms = sorted(module for module in MODULES if module.startswith("core.") and not module.endswith("__main__"))
    script = (
        "import os, importlib, threading\n"
        "import torch, numpy, PIL.Image\n"  # what other people's packages do is theirs
        "before = dict(os.environ), os.getcwd(), torch.get_num_threads(), torch.get_default_dtype()\n"
        f"for name in {rooms}:\n"
        "    importlib.import_module(name)\n"
        "assert before == (dict(os.environ), os.getcwd(), torch.get_num_threads(), torch.get_default_dtype())\n"
        "assert threading.active_count() == 1\n"
        "print('quiet')\n"
    )
    assert python(script) == ["quiet"]
