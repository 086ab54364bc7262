"""The never-rules of the architecture as functions over one source file; `test_architecture.py` applies them.

A rule yields a line for each violation. It looks at the syntax tree alone: what a file imports, names, defines.
"""

import ast
import sys
from collections.abc import Callable, Iterator
from functools import cached_property
from typing import NamedTuple

PRODUCT = ("orpheusd/", "orpheusctl/", "workspace/")
PURE = ("orpheusd/core/", "orpheusd/wire/")
INSIDE = ("orpheusd/worker/", "workspace/")
#: What also runs in the agent's interpreter, which may be a Python 3.10.
ON_310 = (*INSIDE, "orpheusd/wire/")

#: All of the standard library that a pure file may use: nothing here can reach outside the process.
PURE_STDLIB = frozenset((
    "__future__", "abc", "bisect", "collections", "contextlib", "copy", "dataclasses", "enum", "functools", "heapq",
    "itertools", "math", "operator", "re", "string", "types", "typing",
))
PURE_BUILTINS = ("open", "print", "input", "eval", "exec", "compile", "__import__", "breakpoint")
PIDS = (
    "os.kill", "os.killpg", "os.wait", "os.wait3", "os.wait4", "os.waitpid", "os.waitid", "os.pidfd_open",
    "signal.pidfd_send_signal", "psutil",
)
FORKS = ("os.fork", "os.forkpty", "pty.fork", "multiprocessing")
ENVIRONMENT = ("os.environ", "os.environb", "os.getenv", "os.getenvb", "os.putenv", "os.unsetenv")
LOCKS = tuple(f"{module}.{name}" for module in ("threading", "asyncio", "multiprocessing")
              for name in ("Lock", "RLock", "Condition", "Semaphore", "BoundedSemaphore", "Barrier"))
SLEEPS = ("time.sleep",)
LATER_THAN_310 = (
    "tomllib", "enum.StrEnum", "enum.verify", "typing.Self", "typing.Never", "typing.LiteralString", "typing.override",
    "typing.assert_never", "typing.assert_type", "typing.reveal_type", "typing.NotRequired", "typing.Required",
    "typing.Unpack", "typing.TypeVarTuple", "typing.dataclass_transform", "datetime.UTC", "asyncio.TaskGroup",
    "asyncio.timeout", "asyncio.timeout_at", "asyncio.Runner", "asyncio.Barrier", "contextlib.chdir",
    "itertools.batched", "ExceptionGroup", "BaseExceptionGroup", "hashlib.file_digest", "operator.call",
)
FILE_LINES, FUNCTION_LINES = 400, 60
FORBIDDEN_NAMES = frozenset(("util", "utils", "helper", "helpers", "common", "misc"))


class Use(NamedTuple):
    """A dotted name that the file imports or touches, with aliases resolved."""

    line: int
    name: str


class Source:
    """One file: its path from the root, with slashes, and its text."""

    def __init__(self, path: str, text: str) -> None:
        self.path = path
        self.text = text
        self.tree = ast.parse(text, path)

    def __repr__(self) -> str:
        return self.path

    @property
    def parts(self) -> list[str]:
        return self.path.removesuffix(".py").split("/")

    @cached_property
    def nodes(self) -> list[ast.AST]:
        return list(ast.walk(self.tree))

    @cached_property
    def imports(self) -> list[Use]:
        """`import a.b` is `a.b`; `from a import b` is `a.b` too: only the interpreter knows whether b is a module."""
        found: list[Use] = []
        for node in self.nodes:
            if isinstance(node, ast.Import):
                found += [Use(node.lineno, name.name) for name in node.names]
            elif isinstance(node, ast.ImportFrom):
                found += [Use(node.lineno, f"{node.module or ''}.{name.name}") for name in node.names]
        return found

    @cached_property
    def uses(self) -> list[Use]:
        """The imports, and every name and attribute that leads back to one, or to a builtin."""
        aliases: dict[str, str] = {}
        for node in self.nodes:
            if isinstance(node, ast.Import):
                aliases |= {name.asname: name.name for name in node.names if name.asname}
            elif isinstance(node, ast.ImportFrom):
                aliases |= {name.asname or name.name: f"{node.module}.{name.name}" for name in node.names}
        found = list(self.imports)
        for node in self.nodes:
            if isinstance(node, ast.Attribute | ast.Name) and (dotted := _dotted(node)):
                root, _, rest = dotted.partition(".")
                found.append(Use(node.lineno, f"{aliases.get(root, root)}.{rest}".rstrip(".")))
        return found


Rule = Callable[[Source], Iterator[str]]


def pure(source: Source) -> Iterator[str]:
    """`core` and `wire` compute: no clock, file, socket or thread, no waiting, nothing hidden from mypy."""
    if not source.path.startswith(PURE):
        return
    for line, name in source.imports:
        if not _below(name, *PURE_STDLIB, "orpheusd.core", "orpheusd.wire", "orpheusd.errors", "orpheusd.operations"):
            yield f"{line}: imports {name}"
    yield from _touching(source, *PURE_BUILTINS)
    for node in source.nodes:
        if isinstance(node, ast.AsyncFunctionDef | ast.Await | ast.AsyncFor | ast.AsyncWith):
            yield f"{node.lineno}: waits"
    for number, text in enumerate(source.text.splitlines(), 1):
        if "# type: ignore" in text:
            yield f"{number}: silences the type checker"


def wire_alone(source: Source) -> Iterator[str]:
    """The worker protocol runs inside the sandbox, where nothing of the daemon is but `wire` and `worker`."""
    if source.path in ("orpheusd/wire/worker.py", "orpheusd/wire/frames.py"):
        for line, name in source.imports:
            if _below(name, "orpheusd") and not _below(name, "orpheusd.wire.worker", "orpheusd.wire.frames"):
                yield f"{line}: imports {name}"


def core_alone(source: Source) -> Iterator[str]:
    """`wire` does not know the core, and the core does not know the wire."""
    for here, other in (("orpheusd/core/", "orpheusd.wire"), ("orpheusd/wire/", "orpheusd.core")):
        if source.path.startswith(here):
            yield from _touching(source, other)


def pids(source: Source) -> Iterator[str]:
    """Only `process/` imports psutil and touches pids; the template reaps what it forked."""
    if _product(source) and not _at(source, "orpheusd/process/", "orpheusd/worker/template.py"):
        yield from _touching(source, *PIDS)
    elif source.path == "orpheusd/worker/template.py":
        yield from _touching(source, "psutil")


def forks(source: Source) -> Iterator[str]:
    """Only the template forks: it runs no event loop and no threads."""
    if _product(source) and source.path != "orpheusd/worker/template.py":
        yield from _touching(source, *FORKS)
    elif source.path == "orpheusd/worker/template.py":
        yield from _touching(source, "asyncio", "threading", "multiprocessing", "concurrent")


def http_library(source: Source) -> Iterator[str]:
    """Only the HTTP door knows an HTTP library."""
    if _product(source) and not _at(source, "orpheusd/doors/http/", "orpheusd/doors/http.py"):
        yield from _touching(source, "starlette", "hypercorn")


def rich_library(source: Source) -> Iterator[str]:
    """Only `orpheusctl/render.py` draws."""
    if _product(source) and source.path != "orpheusctl/render.py":
        yield from _touching(source, "rich")


def inside(source: Source) -> Iterator[str]:
    """What runs in the sandbox has the standard library and itself; `workspace` runs outside Orpheus too."""
    own = ("workspace",) if source.path.startswith("workspace/") else (
        "workspace", "orpheusd.worker", "orpheusd.wire.worker", "orpheusd.wire.frames")
    if source.path.startswith(INSIDE):
        for line, name in source.imports:
            if not _below(name, *sys.stdlib_module_names, *own):
                yield f"{line}: imports {name}"


def on_310(source: Source) -> Iterator[str]:
    """What runs in the agent's interpreter keeps to Python 3.10."""
    if source.path.startswith(ON_310):
        yield from _touching(source, *LATER_THAN_310)
        try:
            ast.parse(source.text, feature_version=(3, 10))
        except SyntaxError as error:
            yield f"{error.lineno}: {error.msg}"


def client(source: Source) -> Iterator[str]:
    """`orpheusctl` knows the wire, the errors and the operations, and nothing else of the daemon."""
    if source.path.startswith("orpheusctl/"):
        for line, name in source.imports:
            if _below(name, "orpheusd") and not _below(
                    name, "orpheusd.wire", "orpheusd.errors", "orpheusd.operations", "orpheusd.__version__"):
                yield f"{line}: imports {name}"


def environment(source: Source) -> Iterator[str]:
    """Only `config.py` reads the daemon's environment; a worker's environment is its agent's."""
    if _at(source, "orpheusd/") and not _at(source, "orpheusd/config.py", "orpheusd/worker/"):
        yield from _touching(source, *ENVIRONMENT)


def one_decider(source: Source) -> Iterator[str]:
    """Only the engine feeds the supervisor."""
    if _at(source, "orpheusd/") and source.path != "orpheusd/engine.py":
        for node in source.nodes:
            if isinstance(node, ast.Attribute) and node.attr == "handle" \
                    and (_dotted(node.value) or "").lower().split(".")[-1].endswith("supervisor"):
                yield f"{node.lineno}: {_dotted(node)}"


def locks(source: Source) -> Iterator[str]:
    """No locks: one task decides. The run log's writer is the one thread that hands things over."""
    if _at(source, "orpheusd/") and source.path != "orpheusd/runlog/writer.py":
        yield from _touching(source, *LOCKS)


def absolute_imports(source: Source) -> Iterator[str]:
    """An import says where a thing is."""
    for node in source.nodes:
        if isinstance(node, ast.ImportFrom) and node.level:
            yield f"{node.lineno}: relative import of {'.' * node.level}{node.module or ''}"


def telling_names(source: Source) -> Iterator[str]:
    """A file is named for what it is about."""
    for part in source.parts:
        if part in FORBIDDEN_NAMES:
            yield f"1: {part} says nothing"


def short_files(source: Source) -> Iterator[str]:
    """A file over 400 lines wants to be two."""
    if (lines := len(source.text.splitlines())) > FILE_LINES:
        yield f"{lines}: {lines} lines, more than {FILE_LINES}"


def short_functions(source: Source) -> Iterator[str]:
    """A function fits on a screen."""
    for node in source.nodes:
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            lines = (node.end_lineno or node.lineno) - node.lineno + 1
            if lines > FUNCTION_LINES:
                yield f"{node.lineno}: {node.name} has {lines} lines, more than {FUNCTION_LINES}"


def docstrings(source: Source) -> Iterator[str]:
    """A module says what it is for, a class with behaviour what it promises; a record's name may be enough."""
    if _product(source):
        if not ast.get_docstring(source.tree):
            yield "1: the module has no docstring"
        for node in source.nodes:
            if isinstance(node, ast.ClassDef) and not ast.get_docstring(node) and _behaves(node):
                yield f"{node.lineno}: class {node.name} has no docstring"


def no_sleeping(source: Source) -> Iterator[str]:
    """Nothing sleeps to wait. `tests/eventually.py` is the one waiting tool; an agent's code may do as it likes."""
    if _at(source, "orpheusd/", "orpheusctl/", "tests/") and not _at(source, "tests/eventually.py", "tests/handlers/"):
        yield from _touching(source, *SLEEPS)


RULES: dict[str, Rule] = {rule.__name__: rule for rule in (
    pure, wire_alone, core_alone, pids, forks, http_library, rich_library, inside, on_310, client, environment,
    one_decider, locks, absolute_imports, telling_names, short_files, short_functions, docstrings, no_sleeping,
)}


def _product(source: Source) -> bool:
    return source.path.startswith(PRODUCT)


def _behaves(node: ast.ClassDef) -> bool:
    """Whether others meet the class and it does more than hold fields."""
    return not node.name.startswith("_") and any(
        isinstance(item, ast.FunctionDef | ast.AsyncFunctionDef) for item in node.body)


def _at(source: Source, *places: str) -> bool:
    """Whether the file is one of `places`, or in one that ends with a slash."""
    return any(source.path == place or (place.endswith("/") and source.path.startswith(place)) for place in places)


def _below(name: str, *roots: str) -> bool:
    return any(name == root or name.startswith(root + ".") for root in roots)


def _touching(source: Source, *names: str) -> Iterator[str]:
    for line, name in source.uses:
        if _below(name, *names):
            yield f"{line}: {name}"


def _dotted(node: ast.expr) -> str | None:
    """`a.b.c` for the attribute of an attribute of a name, else None."""
    if isinstance(node, ast.Name):
        return node.id
    if isinstance(node, ast.Attribute) and (value := _dotted(node.value)):
        return f"{value}.{node.attr}"
    return None
