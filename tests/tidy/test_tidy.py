"""The house stays small, documented and without leftovers."""

import ast
import re
from pathlib import Path

import pytest

from croft.adapters.migrations import migrations
from croft.cli.main import COMMANDS
from croft.control.config import KEYS
from croft.errors import CroftError

ROOT = Path(__file__).parents[2]
SOURCE = ROOT / "src" / "croft"
MODULES = sorted(SOURCE.rglob("*.py"))
MODULE_LINES_MAX = 600
FUNCTION_LINES_MAX = 70
FORBIDDEN_NAMES = {"utils.py", "helpers.py", "common.py", "misc.py"}
CORES = [
    "compute/verification.py",
    "twins/community.py",
    "twins/community_graph.py",
    "twins/community_reducer.py",
    "overlay/control_stream.py",
    "overlay/membership.py",
    "overlay/records.py",
    "overlay/failure_detector.py",
    "overlay/neighbours.py",
    "overlay/presence.py",
    "overlay/lookup.py",
    "overlay/providers.py",
    "overlay/directory.py",
    "overlay/invitation.py",
    "overlay/contacts.py",
    "overlay/doorkeeper.py",
    "overlay/exposure.py",
    "overlay/pacing.py",
    "overlay/lan_beacon.py",
    "overlay/socks.py",
    "overlay/address_observation.py",
    "overlay/relay.py",
    "overlay/resumption.py",
    "overlay/traffic.py",
    "overlay/relay_choice.py",
    "overlay/relay_rates.py",
    "compute/job.py",
    "compute/splitter.py",
    "compute/lenders.py",
    "compute/custody.py",
    "compute/circle.py",
    "compute/admission.py",
    "compute/bag_state.py",
    "compute/owners_rules.py",
    "ledger/lease.py",
    "twins/call.py",
    "twins/capability.py",
    "twins/capability_schema.py",
    "twins/consent.py",
    "twins/audit.py",
    "storage/placement.py",
    "storage/upload.py",
    "storage/download.py",
    "storage/merging.py",
    "storage/proposing.py",
    "storage/rebalancing.py",
    "storage/repair.py",
    "storage/retention.py",
    "storage/pruning.py",
    "storage/backup_schedule.py",
    "wire/frames.py",
    "adapters/arrivals.py",
]
BANNED_IN_CORES = {"asyncio", "time", "socket", "sqlite3", "random", "secrets", "os", "threading"}


def name_of(path: Path) -> str:
    return str(path.relative_to(SOURCE))


@pytest.mark.parametrize("path", MODULES, ids=name_of)
def test_a_module_is_short_and_says_what_it_is(path: Path) -> None:
    text = path.read_text(encoding="utf-8")

    assert path.name not in FORBIDDEN_NAMES
    assert len(text.splitlines()) <= MODULE_LINES_MAX
    assert ast.get_docstring(ast.parse(text)), "no docstring"


@pytest.mark.parametrize("path", MODULES, ids=name_of)
def test_functions_are_short_and_public_ones_are_documented(path: Path) -> None:
    tree = ast.parse(path.read_text(encoding="utf-8"))
    is_port_side = {"adapters", "sim"} & set(path.parts)
    for node in ast.walk(tree):
        if not isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
            continue
        if not isinstance(node, ast.ClassDef):
            body_lines = (node.end_lineno or node.lineno) - node.body[0].lineno + 1
            assert body_lines <= FUNCTION_LINES_MAX, f"{node.name} is {body_lines} lines"
        is_protocol_stub = isinstance(node.body[-1], ast.Expr) and getattr(node.body[-1].value, "value", None) is ...
        if node in tree.body and not node.name.startswith("_") and not is_protocol_stub and not is_port_side:
            assert ast.get_docstring(node), f"{node.name} has no docstring"


@pytest.mark.parametrize("place", CORES)
def test_a_core_touches_no_clock_no_socket_and_no_chance(place: str) -> None:
    tree = ast.parse((SOURCE / place).read_text(encoding="utf-8"))
    imported = {
        alias.name.split(".")[0] for node in ast.walk(tree) if isinstance(node, ast.Import) for alias in node.names
    }
    imported |= {
        node.module.split(".")[0] for node in ast.walk(tree) if isinstance(node, ast.ImportFrom) and node.module
    }

    assert imported.isdisjoint(BANNED_IN_CORES)


def test_every_setting_is_in_the_reference() -> None:
    reference = (ROOT / "docs" / "reference.md").read_text(encoding="utf-8")

    assert [key for key in KEYS if f"`{key}`" not in reference] == []


def test_every_command_is_in_the_reference() -> None:
    reference = (ROOT / "docs" / "reference.md").read_text(encoding="utf-8")

    assert [name for name in COMMANDS if f"## `croft {name}`" not in reference] == []


def test_every_error_is_in_the_reference() -> None:
    reference = (ROOT / "docs" / "reference.md").read_text(encoding="utf-8")
    kinds, pending = [], [CroftError]
    while pending:
        kind = pending.pop()
        kinds.append(kind)
        pending.extend(kind.__subclasses__())

    assert [kind.__name__ for kind in kinds if f"`{kind.__name__}`" not in reference] == []


def test_nothing_is_left_for_later() -> None:
    marks = re.compile(r"\b(TODO|FIXME|XXX|HACK)\b|NotImplementedError")
    found = [name_of(path) for path in MODULES if marks.search(path.read_text(encoding="utf-8"))]

    assert found == []


def test_every_test_is_run() -> None:
    skips = re.compile(r"pytest\.(mark\.)?(skip|xfail)\b")
    tests = [path for path in (ROOT / "tests").rglob("test_*.py") if path != Path(__file__)]

    assert [path.name for path in tests if skips.search(path.read_text(encoding="utf-8"))] == []


def test_nothing_is_unpickled_outside_a_box() -> None:
    loads = re.compile(r"\bpickle\.loads?\b|\bUnpickler\b|\bcloudpickle\.loads?\b")
    found = [name_of(path) for path in MODULES if loads.search(path.read_text(encoding="utf-8"))]

    in_boxes = [*(f"compute/worker_{part}.py" for part in ("crew", "runner", "values")), "sim/sandbox.py"]
    where_the_user_says_so = ["joblib.py"]
    assert found == [*in_boxes[:-1], *where_the_user_says_so, in_boxes[-1]], "the last one stands in for a box"


def test_migrations_are_numbered_without_a_gap_or_a_pair() -> None:
    assert [migration.version for migration in migrations()] == list(range(1, len(migrations()) + 1))


def test_every_folder_of_tests_is_run() -> None:
    run = (ROOT / "tools" / "test").read_text(encoding="utf-8")
    folders = {path.parent.name for path in (ROOT / "tests").rglob("test_*.py")}

    assert [folder for folder in sorted(folders) if f"tests/{folder}" not in run] == []
