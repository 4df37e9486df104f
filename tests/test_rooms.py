"""Who may import whom: the table of docs/architecture.md, enforced."""

import ast
import re
import subprocess
import sys
from collections.abc import Iterator, Mapping, Set
from pathlib import Path

import pytest

from flannel_pl.config import LaunchConfig
from flannel_pl.provenance import SOURCE_ROOMS

PACKAGE = Path(__file__).parents[1] / "flannel_pl"

ROOMS = {
    "__init__": {
        "adapters",
        "analysis",
        "api",
        "corpus",
        "models",
        "recording",
    },  # the public names, resolved when first used
    "__main__": {"cli", "corpus", "recording", "launch", "analysis"},
    "api": {"analysis", "launch", "recording"},
    "cli": {"corpus", "launch", "recording", "shipped", "training"},
    "answer": set[str](),
    "arguments": set[str](),
    "arrays": set[str](),
    "config": set[str](),
    "dotted": set[str](),
    "errors": set[str](),
    "paths": set[str](),
    "experiment": set[str](),
    "hints": set[str](),
    "plugins": set[str](),
    "imports": set[str](),
    "provenance": set[str](),
    "publish": set[str](),
    "shipped": set[str](),
    "small_files": set[str](),
    "signals": set[str](),
    "terminal": set[str](),
    "texts": set[str](),
    "corpus": set[str](),
    "metrics": set[str](),
    "recording": set[str](),
    "quantities": {"metrics", "recording"},
    "models": {"corpus"},
    "adapters": {"quantities", "recording"},
    "training": {"adapters", "corpus", "models", "quantities", "recording"},
    "launch": {"recording"},
    "analysis": {"metrics", "recording"},
}
FOR_ALL = {
    *(
        "answer",
        "arguments",
        "arrays",
        "config",
        "dotted",
        "errors",
        "experiment",
        "hints",
        "imports",
        "paths",
        "plugins",
        "provenance",
        "publish",
    ),
    *("signals", "small_files", "terminal", "texts"),
}

HEAVY = {"torch", "lightning", "transformers", "tokenizers", "matplotlib", "scipy"}
HEAVY_ALLOWED = {
    "corpus": {"tokenizers"},
    "models": {"torch", "lightning", "transformers"},
    "training": {"torch", "lightning", "transformers"},
    "recording": {"torch"},
    "quantities": {"torch"},
    "adapters": {"torch", "lightning", "transformers"},
    "launch": {"torch"},
    "analysis": {"matplotlib", "scipy"},
}


def room_of(file: Path) -> str:
    return file.relative_to(PACKAGE).parts[0].removesuffix(".py")


def imports_of(file: Path) -> Iterator[str]:
    for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{file}: relative import"
            yield node.module or ""
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


def violations() -> Iterator[str]:
    for file in sorted(PACKAGE.rglob("*.py")):
        room = room_of(file)
        for name in imports_of(file):
            parts = name.split(".")
            ours = parts[0] == "flannel_pl" and len(parts) > 1 and parts[1] in ROOMS
            if ours and parts[1] not in ROOMS[room] | FOR_ALL | {room}:
                yield f"{file.relative_to(PACKAGE)} imports {name}"
            if parts[0] in HEAVY - HEAVY_ALLOWED.get(room, set()):
                yield f"{file.relative_to(PACKAGE)} imports {name}"


def test_every_import_is_in_the_table() -> None:
    assert sorted(set(violations())) == []


def test_metrics_know_nothing_but_arrays() -> None:
    """The report measures with them, and so may whatever has a row of weights."""
    allowed = {"arrays", "errors", "metrics"}
    strangers = {
        f"{file.name} imports {name}"
        for file in (PACKAGE / "metrics").rglob("*.py")
        for name in imports_of(file)
        if (parts := name.split("."))[0] not in sys.stdlib_module_names | {"numpy", "ml_dtypes"}
        and not (parts[0] == "flannel_pl" and parts[1] in allowed)
    }
    assert not strangers


def test_only_the_default_names_a_model_or_data() -> None:
    """Besides their own room, and the names that a script imports from the package."""
    names = {"TiedGPT2", "FlannelData"}
    found = {
        file.relative_to(PACKAGE).as_posix()
        for file in PACKAGE.rglob("*.py")
        if room_of(file) not in ("models", "__init__")
        for node in ast.walk(ast.parse(file.read_text(encoding="utf-8")))
        if (isinstance(node, ast.Name) and node.id in names)
        or (isinstance(node, ast.alias) and node.name in names)
        or (isinstance(node, ast.Constant) and node.value in names)
        or (isinstance(node, ast.ImportFrom) and str(node.module).startswith("flannel_pl.models."))
    }
    assert found == {"training/classes.py"}


def test_a_config_is_typed_but_where_it_is_read() -> None:
    """A key by its name is beyond a type checker."""
    found = {
        file.relative_to(PACKAGE).as_posix()
        for room in ("cli", "launch", "training")
        for file in (PACKAGE / room).rglob("*.py")
        for node in ast.walk(ast.parse(file.read_text(encoding="utf-8")))
        if isinstance(node, ast.Subscript)
        and isinstance(node.slice, ast.Constant)
        and isinstance(node.slice.value, str)
        and (getattr(node.value, "id", "") == "config" or getattr(node.value, "attr", "") == "config")
    }
    assert found == {"training/cli.py"}


def strangers_within(house: str, before: Mapping[str, Set[str]]) -> set[str]:
    """Returns the imports of rooms, each of which may import from those that `before` has for it."""
    return {
        f"{file.relative_to(PACKAGE)} imports {name}"
        for room, allowed in before.items()
        for file in (PACKAGE / house / room).rglob("*.py")
        for name in imports_of(file)
        if name.startswith(f"flannel_pl.{house}.") and name.split(".")[2] in before.keys() - allowed
    }


def test_within_analysis_imports_lead_one_way() -> None:
    order = ["measuring", "statistics", "drawing", "reporting"]
    before = {room: {*order[: order.index(room)], room} for room in order} | {
        "comparing": {"drawing", "comparing"}
    }
    assert not strangers_within("analysis", before)


def test_within_recording_imports_lead_one_way() -> None:
    """How a file lies on the disk and how it is written belong together; all else stands on that."""
    order = [("formats", "writing"), ("integrity",), ("gathering",), ("checking",)]
    before = {
        room: {*(lower for below in order[: number + 1] for lower in below)}
        for number, floor in enumerate(order)
        for room in floor
    }
    assert not strangers_within("recording", before)


def test_analysis_leaves_files_of_recordings_to_their_room() -> None:
    """What `open_recording` opens may be of any format."""
    formats = (
        "safetensors",
        "flannel_pl.recording.formats.safetensors",
        "flannel_pl.recording.formats.files",
        "flannel_pl.recording.formats.opening",
    )
    strangers = {
        f"{file.name} imports {name}"
        for file in (PACKAGE / "analysis").rglob("*.py")
        for name in imports_of(file)
        if f"{name}.".startswith(tuple(f"{one}." for one in formats))
    }
    assert not strangers


def test_only_gathering_knows_how_safetensors_lie_on_the_disk() -> None:
    """Whatever else writes or reads goes by the table of formats."""
    home = "flannel_pl.recording.formats.safetensors"
    folder = PACKAGE / "recording" / "formats" / "safetensors"
    importers = {
        file.relative_to(PACKAGE).as_posix()
        for file in PACKAGE.rglob("*.py")
        if folder not in file.parents and any(name.startswith(home) for name in imports_of(file))
    }
    parts = ("contents", "copying", "gatherer", "growing", "index", "limits", "notes")
    assert importers == {"recording/formats/files.py", *(f"recording/gathering/{part}.py" for part in parts)}


def test_every_room_is_in_the_table() -> None:
    there = {room_of(file) for file in PACKAGE.rglob("*.py")}
    assert there == set(ROOMS)


def test_nothing_outside_its_own_files_names_a_launcher() -> None:
    """Save for the one that is meant where none is asked for."""
    folder = PACKAGE / "launch" / "launchers"
    launchers = {path.name for path in folder.iterdir() if path.is_dir() and path.name != "__pycache__"}
    assert launchers == {"local", "slurm"}
    found = set()
    for file in PACKAGE.rglob("*.py"):
        if own := [name for name in launchers if folder / name in file.parents]:
            names = launchers - set(own)
        else:
            names = launchers
        found |= {
            f"{file.relative_to(PACKAGE)} has {node.value!r}"
            for node in ast.walk(ast.parse(file.read_text(encoding="utf-8")))
            if isinstance(node, ast.Constant) and node.value in names
        }
        modules = tuple(f"flannel_pl.launch.launchers.{name}" for name in names)
        found |= {
            f"{file.relative_to(PACKAGE)} imports {name}"
            for name in imports_of(file)
            if name.startswith(modules)
        }
    assert found == {f"config.py has {LaunchConfig.launcher!r}"}


def test_only_the_ring_of_the_recording_room_imports_torch_at_the_top() -> None:
    importers = {
        file.name
        for file in (PACKAGE / "recording").rglob("*.py")
        for node in ast.parse(file.read_text(encoding="utf-8")).body
        if isinstance(node, ast.Import) and any(alias.name == "torch" for alias in node.names)
    }
    assert importers == {"ring.py"}


@pytest.mark.parametrize(
    "statement",
    [
        "import flannel_pl",
        "import flannel_pl.__main__",
        "from flannel_pl import open_recording, gather",
        "import flannel_pl.recording.info",
        "import flannel_pl.experiment, flannel_pl.provenance",
    ],
)
def test_light_parts_do_not_import_torch(statement: str) -> None:
    heavy = "{'torch', 'lightning', 'transformers', 'scipy'}"
    code = f"import sys; {statement}; print(sorted({heavy} & set(sys.modules)))"
    assert subprocess.check_output([sys.executable, "-c", code], text=True).strip() == "[]"


def test_all_rooms_that_decide_bits_are_hashed() -> None:
    """So that going on with a run by other code is noticed."""
    train = {room for room, heavy in HEAVY_ALLOWED.items() if heavy & {"torch", "lightning"}}
    assert train - {"launch", "recording"} <= set(SOURCE_ROOMS)


def test_only_one_module_makes_consoles() -> None:
    """Any other would let through what steers a terminal."""
    makers = {
        file.relative_to(PACKAGE).as_posix()
        for file in PACKAGE.rglob("*.py")
        for node in ast.walk(ast.parse(file.read_text(encoding="utf-8")))
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id == "Console"
    }
    assert makers <= {"terminal.py"}


def test_only_one_module_knows_how_files_are_called() -> None:
    """Neither the names of an experiment's files nor what an ending says; messages may name some."""
    told = re.compile(
        r"\.(safetensors|partial|ckpt|header|roomier|lock|index\.json|extras)\b|^run_$|live_dead|metrics\.csv"
        r"|^(journal|lock|log\.txt|config\.yaml|(experiment|jobs|slurm)\.json|events\.jsonl|gather\.log)$"
    )
    found = {
        f"{file.relative_to(PACKAGE)} has {node.value!r}"
        for file in PACKAGE.rglob("*.py")
        for node in ast.walk(ast.parse(file.read_text(encoding="utf-8")))
        if isinstance(node, ast.Constant) and isinstance(node.value, str)
        if told.search(node.value) and not re.search(r"\s", node.value.strip())
        if file.name != "paths.py"
    }
    assert found == set()


def test_no_two_classes_or_functions_have_one_name() -> None:
    """Those of one module alone aside, which begin with an underscore; and every script's `main`."""
    homes: dict[str, list[str]] = {}
    for file in sorted(PACKAGE.rglob("*.py")):
        for node in ast.parse(file.read_text(encoding="utf-8")).body:
            if not isinstance(node, ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
                continue
            if not node.name.startswith("_") and node.name != "main":
                homes.setdefault(node.name, []).append(file.relative_to(PACKAGE).as_posix())
    assert {name: files for name, files in homes.items() if len(files) > 1} == {}


MOST_LINES, MOST_LINES_OF_A_FUNCTION = 350, 60


def test_files_and_functions_are_short() -> None:
    long_files, long_functions = set(), set()
    for file in PACKAGE.rglob("*.py"):
        name, text = file.relative_to(PACKAGE).as_posix(), file.read_text(encoding="utf-8")
        if len(text.splitlines()) > MOST_LINES:
            long_files.add(name)
        for node in ast.walk(ast.parse(text)):
            if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
                assert node.end_lineno is not None
                if node.end_lineno - node.lineno + 1 > MOST_LINES_OF_A_FUNCTION:
                    long_functions.add(f"{name}: {node.name}")
    assert (long_files, long_functions) == (set(), set())
