"""Bytes that would be a bundle: archives with hostile members, and damaged ones. Each is uploaded and deployed."""

import base64
import gzip
import random
import tarfile
import tempfile
import zlib
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path

from orpheusd.deploy.bundle import survey
from orpheusd.errors import OrpheusError
from tests import tars
from tests.fuzz.agent_yaml import HANDLER, looked_at, refused, upload_of
from tests.fuzz.house import CANARIES, House
from tests.fuzz.mutation import mutated
from tests.fuzz.target import ANSWER_S

BLOCK = 512
#: More than what is mutated inflates to, and less than what slows everything.
INFLATED_LIMIT_BYTES = 256 * 1024

_GOOD = tars.member("agent.yaml", b"name: fuzzed\nruntime: python3\n") + tars.member("agent.py", HANDLER.encode())
_PLACES = [*(str(path) for path in CANARIES), *(f"{'../' * depth}tmp/orpheus-canary" for depth in (1, 2, 5, 9, 12))]
_NAMES: tuple[str | bytes, ...] = (
    *_PLACES, "a", "a/b", "./a", "a/", "", ".", "..", "/", "//a", "a//b", "a/../b", "agent.yaml", "AGENT.YAML",
    "agent.yaml/a", "agent.py/", "é", "e\u0301", b"\xff", b"a\0b", "a\nb", "-rf", " ", "a" * 100, "x/" * 20 + "y",
    "requirements.txt", "con", "a\\b")
_KINDS = (
    tarfile.REGTYPE, tarfile.AREGTYPE, tarfile.DIRTYPE, tarfile.SYMTYPE, tarfile.LNKTYPE, tarfile.FIFOTYPE,
    tarfile.CHRTYPE, tarfile.GNUTYPE_LONGNAME, tarfile.GNUTYPE_LONGLINK, tarfile.GNUTYPE_SPARSE, tarfile.XHDTYPE,
    tarfile.XGLTYPE, b"Z", b"\xff")
_WORDS = (
    b"\0" * BLOCK, b"ustar\0" + b"00", b"ustar  \0", b"path=", b"21 path=../../../tmp\n", b"GNU.sparse.map=",
    b"size=99\n", b"\x80" + b"\xff" * 11, b"77777777777\0", b"-1", b"name: b\n", b"\x1f\x8b\x08")


class Bundles:
    name = "bundles"
    tries = 3

    def seeds(self) -> list[bytes]:
        inner = tars.folder("lib") + tars.member("lib/part.py", b"x = 1\n", mode=0o755)
        extended = tars.pax(path=b"lib/part.py", mtime=b"1.5") + tars.member("short", b"x = 1\n")
        long_name = (tars.member("././@LongLink", b"lib/" + b"n" * 120 + b"\0", tarfile.GNUTYPE_LONGNAME)
                     + tars.member("n", b""))
        link = tars.member("link", kind=tarfile.SYMTYPE, linkname="/etc/passwd")
        more = (b"", inner, extended, long_name, link, tars.pax(tarfile.XGLTYPE, comment=b"x"),
                tars.member("requirements.txt", b"# none\n"), *(tars.member(name, b"1") for name in _PLACES[:5]))
        return [*(zipped(_GOOD + members + tars.END) for members in more), zipped(_GOOD) + zipped(tars.END),
                zipped(b""), zipped(_GOOD)[:-9], b""]

    def mutated(self, dice: random.Random, data: bytes, others: Sequence[bytes]) -> bytes:
        if dice.random() < 0.25:
            return mutated(dice, data, others, _WORDS)
        tar = inflated(data)
        for _ in range(dice.choice((1, 1, 2, 3))):
            tar = _changed(dice, tar, inflated(dice.choice(others)) if others else b"")
        return zipped(tar)

    def decode(self, data: bytes) -> object:
        with tempfile.NamedTemporaryFile(prefix="orpheus-fuzz-") as file:
            file.write(data)
            file.flush()
            return survey(Path(file.name))

    def prepare(self, house: House) -> None:
        """Each input brings its own agent."""

    def send(self, house: House, data: bytes) -> set[str]:
        with house.daemon.connect(ANSWER_S) as control:
            try:
                upload = control.call("bundle.put", data=base64.b64encode(data).decode())
                deployed = control.call("deploy", **upload_of(upload))
            except OrpheusError as error:
                return {refused(error)}
        files = sorted(path.suffix for path in (house.daemon.state_dir / "agents" / deployed["name"]).rglob("*"))
        return {f"{looked_at(house, deployed['name'])}, {len(files)} files"}


def zipped(tar: bytes) -> bytes:
    return gzip.compress(tar, 1, mtime=0)


def inflated(data: bytes) -> bytes:
    """As much as can be inflated of it, and is not too much."""
    found = b""
    with suppress(zlib.error):
        found = zlib.decompressobj(31).decompress(data, INFLATED_LIMIT_BYTES)
    return found


def _changed(dice: random.Random, tar: bytes, other: bytes) -> bytes:
    """The archive with one block changed, left out or doubled, a member added, or bytes changed; sums made right."""
    blocks = [tar[at:at + BLOCK] for at in range(0, len(tar), BLOCK)]
    at = dice.randrange(len(blocks) + 1)
    kind = dice.random()
    if kind < 0.4:
        headers = [at for at, block in enumerate(blocks) if len(block) == BLOCK and block[257:262] == b"ustar"]
        if headers:
            at = dice.choice(headers)
            blocks[at] = _changed_header(dice, blocks[at])
    elif kind < 0.65:
        blocks.insert(at, _member(dice))
    elif kind < 0.75 and blocks:
        del blocks[at:at + dice.choice((1, 1, 2))]
    elif kind < 0.85:
        blocks[at:at] = blocks[dice.randrange(len(blocks) + 1):][:2]
    elif kind < 0.95:
        blocks.append(other)
    else:
        return mutated(dice, tar, [other], _WORDS)
    return b"".join(blocks)


def _changed_header(dice: random.Random, block: bytes) -> bytes:
    """Fields as ustar has them: where each is, and how long."""
    start, length = dice.choice(((0, 100), (100, 8), (124, 12), (136, 12), (156, 1), (157, 100), (257, 8), (345, 155)))
    changed = bytearray(block)
    if start == 0 and dice.random() < 0.7:
        name = dice.choice(_NAMES)
        new = name.encode("utf-8", "surrogateescape") if isinstance(name, str) else name
    elif start == 156:
        new = dice.choice(_KINDS)
    else:
        new = mutated(dice, bytes(changed[start:start + length]), (), _WORDS)
    changed[start:start + length] = new[:length].ljust(length, b"\0")
    return tars.checked(changed) if dice.random() < 0.95 else bytes(changed)


def _member(dice: random.Random) -> bytes:
    name, kind = dice.choice(_NAMES), dice.choice(_KINDS)
    if dice.random() < 0.5:
        kind = tarfile.REGTYPE
    if kind in (tarfile.XHDTYPE, tarfile.XGLTYPE):
        value = name.encode("utf-8", "surrogateescape") if isinstance(name, str) else name
        return tars.pax(kind,
        **{dice.choice(("path", "size", "linkpath", "mtime", "GNU__sparse__name", "uid")): value})
    data = b"" if kind == tarfile.DIRTYPE else dice.choice((b"", b"1", b"x" * 600))
    return tars.member(name, data, kind, linkname=dice.choice(_PLACES), mode=dice.choice((0, 0o644, 0o4777)))
