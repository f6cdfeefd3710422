"""The shape of the sources: import floors, homes of foreign imports, guard rails, public names.

Each check is a function of a path below the root and a source text that returns what it found, so
that the checks are themselves tried below, on small sources that breach one rule each.
"""

from __future__ import annotations

import ast
import importlib
import subprocess
import sys
from collections.abc import Callable, Iterator
from fnmatch import fnmatchcase
from pathlib import Path
from typing import NamedTuple

import pytest

ROOT = Path(__file__).resolve().parent.parent


class Group(NamedTuple):
    """Modules of one floor that may import each other, one way round."""

    floor: int
    modules: str  # names and patterns
    beside: str = ""  # the groups of the same floor that it may import as well
    lowest_only: bool = False  # of the floors below, may it import 0 and 1 alone?


PARTS = (
    "state disk raft_log membership incarnations commitment inbox progress fsm_faults fsm_check"
    " state_machine fsm_answers fsm_restores fsm_runner settling damage plausible claims elections"
    " told"
)
RUNNERS = (
    "append_entries request_vote install_snapshot heartbeat send_snapshot replication snapshotter"
    " first_start start_up recovery stats gauges lifecycle assembly"
)


def _within(package: str, names: str) -> str:
    return " ".join(f"{package}.{name}" for name in names.split())


# A module imports what lies on a lower floor, in its own group, or in a group named as `beside` it.
GROUPS = {
    "data": Group(0, _within("raft", "types errors runtime logs waiting files")),
    "contracts": Group(
        1, _within("raft", "interfaces messages config codec futures observer metrics")
    ),
    "parts": Group(2, _within("raft.engine", PARTS)),
    "core": Group(2, "raft.engine.core", "parts"),
    "runners": Group(2, "raft.engine " + _within("raft.engine", RUNNERS), "parts core"),
    "stores": Group(2, "raft.stores raft.stores.*"),
    "snapshots": Group(2, "raft.snapshots raft.snapshots.*"),
    "transport": Group(2, "raft.transport raft.transport.*"),
    "sinks": Group(2, "raft.prometheus"),
    "role": Group(3, "raft.roles.base"),
    "lease": Group(
        3,
        _within(
            "raft.roles",
            "lease inflight peers voters stall transfer changes user_restore full_disk"
            " lost_snapshot",
        ),
        "role",
    ),
    "follower": Group(3, "raft.roles.follower raft.roles.candidate", "role"),
    "leader": Group(3, "raft.roles raft.roles.leader", "role lease"),
    "node": Group(4, "raft.node raft.bootstrap"),
    "public": Group(4, "raft raft.backup", "node"),
    "testing": Group(5, "raft.testing raft.testing.*"),
    "raftsqlite": Group(5, "raftsqlite raftsqlite.*", lowest_only=True),
    "programs": Group(
        5, "raft.forward raft.client raft.cli raft.cli.* raft.web raft.web.*", "raftsqlite"
    ),
}

# Where else than in its home an import may stand: programs above the node use the stdlib directly.
PROGRAMS = "raft/forward.py raft/client.py raft/cli/* raft/web/*"
ABOVE = f"{PROGRAMS} raft/testing/* raftsqlite/*"

# Foreign import -> the only files that may have it. The standard library is free unless listed;
# a third party's package must be listed.
HOMES = {
    "cbor2": "raft/codec.py",
    "sqlite_utils": "raftsqlite/*",
    "msgpack": "raft/transport/hashicorp.py",
    "prometheus_client": "raft/prometheus.py",
    "greenlet": "raft/testing/*",
    # Records leave by `raft.logs`; the others need its types and levels.
    "logging": "raft/logs.py raft/config.py raft/node.py raft/engine/core.py"
    " raft/engine/assembly.py raft/transport/server.py raft/testing/*",
    "concurrent": f"raft/futures.py {ABOVE}",
    **dict.fromkeys(("socket", "ssl"), f"raft/transport/* {PROGRAMS}"),
    **dict.fromkeys(
        ("threading", "queue", "time", "random", "uuid", "secrets"), f"raft/runtime.py {ABOVE}"
    ),
}

MODULE_LINES, SHORTEST_MODULE, CLASS_LINES, METHODS, ATTRIBUTES = 550, 50, 350, 25, 15
FUNCTION_LINES, RECEIVER_LINES = 50, 80  # without docstring
RECEIVERS = {f"raft/engine/{name}.py" for name in RUNNERS.split()[:3]}
FACADE = ("raft/node.py", "Raft")  # wide, as the API it mirrors: no limit to lines and methods

Function = ast.FunctionDef | ast.AsyncFunctionDef
Definition = Function | ast.ClassDef

# What the guard rails would not allow, and the reason. Keys are "raft/node.py:Raft.stats lines"
# (for classes also `methods` and `attributes`), or for a whole file "raft/node.py lines".
EXCEPTIONS: dict[str, str] = {
    "raft/engine/assembly.py:assemble lines": "five over: it is the list of a node's parts",
    "raft/engine/core.py:Core attributes": "it is the list of a node's collaborators",
    "raft/engine/lifecycle.py:Lifecycle attributes": "one over: collaborators, what it was asked",
    "raft/engine/fsm_runner.py:FsmRunner attributes": "one over: collaborators and wishes",
    "raft/engine/replication.py:PeerReplicator methods": "three over: probing and the window share"
    " every field, so two classes would be friends of each other's privates",
    "raft/engine/replication.py:PeerReplicator attributes": "one over: a snapshot on its way",
    "raft/node.py lines": "a method for each call of the original, and its contract",
    "raftsqlite/store.py:SQLiteStore methods": "one over: it offers nine contracts",
    "raft/roles/leader.py:Leader attributes": "one over: a part for each thing that a leader does",
    "raft/roles/leader.py:Leader methods": "a method for each message that a leader answers",
}


class Import(NamedTuple):
    module: str
    line: int
    nested: bool  # inside a function


def read_imports(source: str) -> Iterator[Import]:
    """All imports, also those for type checkers; `from a import b` is `a.b` if that is a module."""
    tree = ast.parse(source)
    nested = {id(n) for f in ast.walk(tree) if isinstance(f, Function) for n in ast.walk(f)}
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            base = "." * node.level + (node.module or "")
            full = [(base, f"{base}.{alias.name}") for alias in node.names]
            names = [longer if is_module(longer) else shorter for shorter, longer in full]
        else:
            continue
        for name in dict.fromkeys(names):
            yield Import(name, node.lineno, id(node) in nested)


def is_module(name: str) -> bool:
    path = ROOT.joinpath(*name.split("."))
    return path.with_suffix(".py").is_file() or (path / "__init__.py").is_file()


def module_name(path: str) -> str:
    return path.removesuffix(".py").removesuffix("/__init__").replace("/", ".")


def matches(name: str, patterns: str) -> bool:
    return any(fnmatchcase(name, pattern) for pattern in patterns.split())


def group_of(module: str) -> str | None:
    return next((key for key, group in GROUPS.items() if matches(module, group.modules)), None)


def is_ours(module: str) -> bool:
    return module.split(".")[0] in ("raft", "raftsqlite")


def may_import(importer: str, imported: str) -> bool:
    if importer == imported:
        return True
    above, below = GROUPS[importer], GROUPS[imported]
    if below.floor < above.floor:
        return below.floor <= 1 or not above.lowest_only
    return imported in above.beside.split()


def floor_breaches(path: str, source: str) -> Iterator[str]:
    own = module_name(path)
    group = group_of(own)
    if group is None:
        yield f"{path}: stands on no floor, give it a place in GROUPS"
        return
    for name, line, nested in read_imports(source):
        where, target = f"{path}:{line}", group_of(name)
        if nested:
            yield f"{where}: the import of {name} is hidden in a function"
        if name.startswith("."):
            yield f"{where}: relative import"
        elif not is_ours(name):
            continue
        elif own.startswith(f"{name}."):
            yield f"{where}: imports from {name}, the package it stands in; name the module"
        elif target is None:
            yield f"{where}: {name} stands on no floor"
        elif not may_import(group, target):
            yield f"{where}: {group} must not import {target} ({name})"


def home_breaches(path: str, source: str) -> Iterator[str]:
    for name, line, _ in read_imports(source):
        top = name.split(".")[0]
        if is_ours(name) or not top:
            continue
        if top in HOMES:
            if not matches(path, HOMES[top]):
                yield f"{path}:{line}: {top} is imported in {HOMES[top]} only"
        elif top not in sys.stdlib_module_names:
            yield f"{path}:{line}: {top} has no home in HOMES"


def cycle_breaches(sources: dict[str, str]) -> Iterator[str]:
    """Take away, again and again, the modules that import none of the rest: what stays is round."""
    graph = {module_name(p): {i.module for i in read_imports(s)} for p, s in sources.items()}
    while free := [name for name, imported in graph.items() if not imported & graph.keys()]:
        for name in free:
            del graph[name]
    for name, imported in sorted(graph.items()):
        yield f"{name}: in or above a cycle, by {', '.join(sorted(imported & graph.keys()))}"


def size_breaches(path: str, source: str) -> Iterator[tuple[str, str]]:
    """What is too large or too small, as a key of `EXCEPTIONS` and what was counted."""
    lines = len(source.splitlines())
    if lines > MODULE_LINES:
        yield f"{path} lines", f"{lines} > {MODULE_LINES}"
    if lines < SHORTEST_MODULE and Path(path).name not in ("__init__.py", "__main__.py"):
        yield f"{path} lines", f"{lines} < {SHORTEST_MODULE}"
    limit = RECEIVER_LINES if path in RECEIVERS else FUNCTION_LINES
    for name, node in definitions(ast.parse(source)):
        key, facade = f"{path}:{name}", (path, name) == FACADE
        if not isinstance(node, ast.ClassDef):
            if (count := length(node) - docstring_length(node)) > limit:
                yield f"{key} lines", f"{count} > {limit}"
        else:
            if (count := length(node)) > CLASS_LINES and not facade:
                yield f"{key} lines", f"{count} > {CLASS_LINES}"
            if (count := len(methods(node))) > METHODS and not facade:
                yield f"{key} methods", f"{count} > {METHODS}"
            if (count := len(attributes(node))) > ATTRIBUTES and not is_plain_data(node):
                yield f"{key} attributes", f"{count} > {ATTRIBUTES}"


def definitions(node: ast.AST, prefix: str = "") -> Iterator[tuple[str, Definition]]:
    """Every class and function below the node, by its qualified name."""
    for child in ast.iter_child_nodes(node):
        name = prefix
        if isinstance(child, Definition):
            name = f"{prefix}.{child.name}".lstrip(".")
            yield name, child
        yield from definitions(child, name)


def length(node: ast.stmt) -> int:
    return (node.end_lineno or node.lineno) - node.lineno + 1


def docstring_length(node: Function) -> int:
    return 0 if ast.get_docstring(node) is None else length(node.body[0])


def methods(node: ast.ClassDef) -> set[str]:
    return {n.name for n in node.body if isinstance(n, Function)}


def attributes(node: ast.ClassDef) -> set[str]:
    """Fields declared in the class (class variables are not), and all that methods set on self."""
    declared = {
        n.target.id
        for n in node.body
        if isinstance(n, ast.AnnAssign)
        and isinstance(n.target, ast.Name)
        and "ClassVar" not in ast.unparse(n.annotation)
    }
    assigned = {
        n.attr
        for n in ast.walk(node)
        if isinstance(n, ast.Attribute) and isinstance(n.ctx, ast.Store)
        if isinstance(n.value, ast.Name) and n.value.id == "self"
    }
    return declared | assigned


def is_plain_data(node: ast.ClassDef) -> bool:
    """A dataclass that is frozen, or has no methods but properties and magic ones."""
    dataclass = [d for d in map(ast.unparse, node.decorator_list) if "dataclass" in d]
    plain = [
        name
        for n in node.body
        if isinstance(n, ast.FunctionDef) and not n.decorator_list
        if not (name := n.name).startswith("__")
    ]
    return bool(dataclass) and ("frozen=True" in dataclass[0] or not plain)


# What the checks say of our own sources.

SOURCES = {
    path.relative_to(ROOT).as_posix(): path.read_text()
    for package in ("raft", "raftsqlite")
    for path in sorted((ROOT / package).rglob("*.py"))
}
PACKAGES = ["raft", *(f"raft.{p}" for p in ("stores", "snapshots", "transport", "testing"))]


def test_imports_go_down_the_floors() -> None:
    assert [breach for item in SOURCES.items() for breach in floor_breaches(*item)] == []


def test_foreign_imports_stay_at_home() -> None:
    assert [breach for item in SOURCES.items() for breach in home_breaches(*item)] == []


def test_no_import_goes_round() -> None:
    assert list(cycle_breaches(SOURCES)) == []


def test_sizes_stay_within_the_guard_rails() -> None:
    found = dict(breach for item in SOURCES.items() for breach in size_breaches(*item))

    assert {key: count for key, count in found.items() if key not in EXCEPTIONS} == {}
    assert EXCEPTIONS.keys() - found.keys() == set(), "no longer needed"
    assert all(EXCEPTIONS.values()), "an exception without its reason"


def test_import_starts_no_thread() -> None:
    script = "import threading, raft; print([t.name for t in threading.enumerate()])"

    run = subprocess.run(
        [sys.executable, "-c", script], cwd=ROOT, capture_output=True, text=True, check=False
    )

    assert (run.stdout, run.stderr) == ("['MainThread']\n", "")


@pytest.mark.parametrize("package", [name for name in [*PACKAGES, "raftsqlite"] if is_module(name)])
def test_public_names_are_sorted_and_exist(package: str) -> None:
    module = importlib.import_module(package)
    names = list(module.__all__)

    # As ruff sorts them: constants, classes, functions.
    assert names == sorted(names, key=lambda n: (0 if n.isupper() else 2 - n[0].isupper(), n))
    assert len(set(names)) == len(names)
    assert [name for name in names if not hasattr(module, name)] == []


# What the checks say of made-up sources: nothing of those that keep the rules, and of each that
# breaches one, just that.


@pytest.mark.parametrize(
    ("path", "source"),
    [
        ("raft/types.py", "from raft.errors import RaftError"),
        ("raft/engine/core.py", "from raft.engine.state import HardState"),
        ("raft/engine/snapshotter.py", "from raft.engine.core import Core"),
        ("raft/roles/leader.py", "from raft.roles.lease import Lease"),
        ("raft/transport/tcp.py", "import socket, ssl\nfrom raft.messages import RPC"),
        ("raft/futures.py", "from concurrent.futures import Future"),
        ("raft/runtime.py", "import threading, queue, time, random, uuid, secrets"),
        ("raft/testing/simulation.py", "import greenlet, threading\nfrom raft.node import Raft"),
        ("raft/cli/main.py", "import time\nfrom raftsqlite import SQLiteStore"),
        ("raft/__init__.py", "from raft.node import Raft"),
        ("raftsqlite/store.py", "import sqlite_utils, threading\nfrom raft.errors import E"),
    ],
)
def test_keeping_the_rules_is_no_breach(path: str, source: str) -> None:
    assert [*floor_breaches(path, source), *home_breaches(path, source)] == []


@pytest.mark.parametrize(
    ("path", "source", "breach"),
    [
        ("raft/types.py", "import raft.codec", "data must not import contracts"),
        ("raft/engine/state.py", "import raft.engine.core", "parts must not import core"),
        ("raft/engine/core.py", "import raft.engine.replication", "core must not import runners"),
        ("raft/engine/core.py", "import raft.stores.cache", "core must not import stores"),
        ("raft/transport/tcp.py", "import raft.engine.inbox", "transport must not import parts"),
        ("raft/transport/tcp.py", "import raft.stores", "transport must not import stores"),
        ("raft/roles/base.py", "import raft.roles.leader", "role must not import leader"),
        ("raft/roles/follower.py", "import raft.roles.lease", "follower must not import lease"),
        ("raft/roles/lease.py", "import raft.node", "lease must not import node"),
        ("raft/node.py", "import raft.testing.cluster", "node must not import testing"),
        ("raft/node.py", "import raftsqlite", "node must not import raftsqlite"),
        ("raftsqlite/store.py", "import raft.stores.inmem", "raftsqlite must not import stores"),
        ("raftsqlite/store.py", "from raft import Raft", "raftsqlite must not import public"),
        (
            "raft/types.py",
            "from typing import TYPE_CHECKING\nif TYPE_CHECKING:\n    import raft.node",
            "types.py:3: data must not import node",
        ),
        ("raft/node.py", "from raft import Raft", "imports from raft, the package it stands in"),
        ("raft/stores/inmem.py", "import raft.stores", "imports from raft.stores, the package"),
        ("raft/node.py", "import raft.nonesuch", "raft.nonesuch stands on no floor"),
        ("raft/nonesuch.py", "", "raft/nonesuch.py: stands on no floor"),
        ("raft/node.py", "from .config import Config", "relative import"),
        ("raft/node.py", "def f():\n    import os", "os is hidden in a function"),
        ("raft/node.py", "class C:\n    async def f():\n        import os", "os is hidden"),
    ],
)
def test_floor_breaches_are_found(path: str, source: str, breach: str) -> None:
    (found,) = floor_breaches(path, source)

    assert breach in found


@pytest.mark.parametrize(
    ("path", "source"),
    [
        ("raft/messages.py", "from cbor2 import dumps"),
        ("raft/stores/inmem.py", "import sqlite_utils"),
        ("raft/transport/tcp.py", "import msgpack"),
        ("raft/runtime.py", "from greenlet import greenlet"),
        ("raft/testing/cluster.py", "import socket"),
        ("raftsqlite/store.py", "import ssl"),
        ("raft/node.py", "import concurrent.futures"),
        ("raft/node.py", "from concurrent import futures"),
        ("raft/node.py", "import requests"),
        ("raftsqlite/store.py", "import requests"),
        *(
            ("raft/engine/inbox.py", f"import {name}")
            for name in ("threading", "queue", "time", "random", "uuid", "secrets")
        ),
    ],
)
def test_imports_away_from_home_are_found(path: str, source: str) -> None:
    assert len(list(home_breaches(path, source))) == 1


def test_cycles_are_found() -> None:
    straight = {"raft/a.py": "import raft.b, raft.c", "raft/b.py": "import raft.c", "raft/c.py": ""}

    assert list(cycle_breaches(straight)) == []
    (first, second, third) = cycle_breaches(straight | {"raft/c.py": "import raft.b"})
    assert (first[:6], second[:6], third[:6]) == ("raft.a", "raft.b", "raft.c")


def function(lines: int, docstring: int = 0, name: str = "f") -> str:
    words = ["    '''" + "\n" * (docstring - 1) + "'''"] if docstring else []
    return "\n".join([f"def {name}(self):", *words, *["    pass"] * (lines - 1)])


def in_class(body: str, name: str = "C") -> str:
    return f"class {name}:\n" + "\n".join(f"    {line}" for line in body.splitlines())


def fields(count: int) -> str:
    return "\n".join(f"x{n}: int" for n in range(count))


def setters(count: int) -> str:
    return "def f(self):\n" + "\n".join(f"    self.x{n} = self.y = 1" for n in range(1, count))


def defs(count: int) -> str:
    return "\n".join(function(2, name=f"f{n}") for n in range(count))


SIZES: list[tuple[str, Callable[[int], str], int, str]] = [
    # path, source of a size, the largest that is allowed, what is named beyond
    ("raft/x.py", lambda n: "pass\n" * n, 550, "raft/x.py lines"),
    ("raft/x.py", lambda n: in_class("pass\n" * (n - 1)), 350, "raft/x.py:C lines"),
    ("raft/x.py", lambda n: in_class(defs(n)), 25, "raft/x.py:C methods"),
    ("raft/x.py", lambda n: in_class(fields(n)), 15, "raft/x.py:C attributes"),
    ("raft/x.py", lambda n: in_class(setters(n)), 15, "raft/x.py:C attributes"),
    ("raft/x.py", function, 50, "raft/x.py:f lines"),
    ("raft/x.py", lambda n: function(n, docstring=20), 50, "raft/x.py:f lines"),
    ("raft/engine/request_vote.py", function, 80, "raft/engine/request_vote.py:f lines"),
    (
        "raft/x.py",
        lambda n: "@dataclass(slots=True)\n" + in_class(f"{fields(n)}\n{function(2)}"),
        15,
        "raft/x.py:C attributes",
    ),
]


@pytest.mark.parametrize(("path", "source", "limit", "key"), SIZES)
def test_sizes_beyond_the_guard_rails_are_found(
    path: str, source: Callable[[int], str], limit: int, key: str
) -> None:
    filler = "\n#" * 50  # no module is too short

    assert [key for key, _ in size_breaches(path, source(limit) + filler * (limit < 500))] == []
    (breach,) = size_breaches(path, source(limit + 1) + filler * (limit < 500))
    assert breach == (key, f"{limit + 1} > {limit}")


def test_short_modules_are_found_but_for_package_files() -> None:
    assert list(size_breaches("raft/x.py", "#\n" * 49)) == [("raft/x.py lines", "49 < 50")]
    assert list(size_breaches("raft/x.py", "#\n" * 50)) == []
    assert list(size_breaches("raft/cli/__main__.py", "")) == []


@pytest.mark.parametrize("decorator", ["@dataclass", "@dataclasses.dataclass(frozen=True)"])
def test_plain_data_may_be_wide(decorator: str) -> None:
    assert list(size_breaches("raft/__init__.py", f"{decorator}\n{in_class(fields(40))}")) == []


def test_the_facade_may_be_wide() -> None:
    source = in_class(defs(160), name="Raft")

    assert list(size_breaches("raft/node.py", source)) == []
    assert len(list(size_breaches("raft/bootstrap.py", source))) == 1
