"""The inputs that are kept, a file each: those that reached something no other did, and those that broke something.

`tests/fuzz/corpus/TARGET/` is small, and `make test` tries every input of it. What broke the daemon is there too, by
the name `crash-…`; it stays when that is mended, so that it stays mended.
"""

import hashlib
from pathlib import Path

PLACE = Path(__file__).parent / "corpus"

#: Per target, each of at most KEPT_BYTES: the whole corpus is below 200 KiB.
KEPT_INPUTS = 40
KEPT_BYTES = 1024


def load(target: str, place: Path = PLACE) -> dict[Path, bytes]:
    """The kept inputs of a target, in the order of their names."""
    return {path: path.read_bytes() for path in sorted((place / target).glob("*")) if path.is_file()}


def keep(target: str, data: bytes, place: Path = PLACE) -> Path | None:
    """Keep an input that reached something new, if it is small and there is room. Its file, or None."""
    if len(data) > KEPT_BYTES or len(load(target, place)) >= KEPT_INPUTS:
        return None
    return _write(place / target, _digest(data), data)


def keep_crash(target: str, data: bytes, place: Path = PLACE) -> Path:
    """Keep an input that broke something, whatever its size."""
    return _write(place / target, f"crash-{_digest(data)}", data)


def _write(folder: Path, name: str, data: bytes) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    (folder / name).write_bytes(data)
    return folder / name


def _digest(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()[:12]
