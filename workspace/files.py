"""Files in the workspace: paths that cannot leave it, and writes that happen whole or not at all.

The suffix decides how a file is written and read, so that `load` gives back what `save` took: `.json` and no
suffix hold JSON, the suffixes of `TEXT_SUFFIXES` hold text in UTF-8, every other suffix holds bytes. It knows
nothing of sessions or runs.
"""

import json
import os
from pathlib import Path
from typing import Any

from workspace import _runtime

JSON_SUFFIXES = frozenset({"", ".json"})
TEXT_SUFFIXES = frozenset({
    ".txt", ".md", ".rst", ".csv", ".tsv", ".html", ".xml", ".svg", ".yaml", ".yml", ".toml", ".ini", ".log",
    ".jsonl", ".py", ".js", ".css", ".sql",
})

_REQUIRED: Any = object()


def path(*parts: str | os.PathLike[str]) -> Path:
    """A path under the workspace; its parent directories are made. Without parts, the workspace itself.

    Raises ValueError when the parts, or a symbolic link on the way, lead out of the workspace.
    """
    target = _inside(*parts)
    directory = target if target == _runtime.root() else target.parent
    directory.mkdir(parents=True, exist_ok=True)
    return target


def save(file: str | os.PathLike[str], value: Any) -> Path:
    """Write `value` to `file` atomically and durably; a reader sees the old content or the new, never a part.

    Raises TypeError or ValueError when the suffix of `file` does not fit `value`; the file is then untouched.
    """
    target = path(file)
    write_whole(target, _encode(target, value))
    return target


def write_whole(target: Path, data: bytes) -> None:
    """Replace the content of `target` atomically and durably."""
    temporary = target.with_name(f".orpheus-{os.urandom(8).hex()}.tmp")
    fd = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o666)
    try:
        with os.fdopen(fd, "wb") as stream:
            stream.write(data)
            stream.flush()
            os.fsync(stream.fileno())
        temporary.replace(target)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise
    _sync_directory(target.parent)


def load(file: str | os.PathLike[str], default: Any = _REQUIRED) -> Any:
    """What `save` wrote to `file`, or `default` when there is no such file.

    Raises FileNotFoundError without a default, and ValueError when the content is not what the suffix says.
    """
    target = _inside(file)
    try:
        data = target.read_bytes()
    except FileNotFoundError:
        if default is _REQUIRED:
            raise
        return default
    suffix = target.suffix.lower()
    try:
        if suffix in JSON_SUFFIXES:
            return json.loads(data)
        return data.decode() if suffix in TEXT_SUFFIXES else data
    except ValueError as error:
        kind = "JSON" if suffix in JSON_SUFFIXES else "UTF-8 text"
        raise ValueError(f"cannot load {target}: it does not hold {kind} ({error})") from error


def _inside(*parts: str | os.PathLike[str]) -> Path:
    """The path of `parts`, symbolic links followed, spelled under the workspace as the agent knows it."""
    root = _runtime.root()
    real_root = os.path.realpath(root)
    wanted = os.path.join(root, *parts)  # noqa: PTH118 - pathlib would not join bytes-like mistakes as clearly
    real = os.path.realpath(wanted)
    if real != real_root and not real.startswith(os.path.join(real_root, "")):  # noqa: PTH118
        raise ValueError(f"{wanted!r} is not inside the workspace {os.fspath(root)!r}; use a relative path in it")
    return root / os.path.relpath(real, real_root)


def _encode(target: Path, value: Any) -> bytes:
    suffix = target.suffix.lower()
    if suffix in JSON_SUFFIXES:
        if isinstance(value, bytes | bytearray | memoryview):
            raise TypeError(f"cannot save bytes as JSON to {target.name!r}: give the file a suffix such as .bin")
        return json.dumps(value, ensure_ascii=False, allow_nan=False).encode()
    if suffix in TEXT_SUFFIXES:
        if not isinstance(value, str):
            raise TypeError(f"{target.name!r} holds text, not {type(value).__name__}: name it .json, or save a str")
        return value.encode()
    if not isinstance(value, bytes | bytearray | memoryview):
        raise TypeError(
            f"{target.name!r} holds bytes, not {type(value).__name__}: name it .json or .txt, or encode it first")
    return bytes(value)


def _sync_directory(directory: Path) -> None:
    fd = os.open(directory, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)
