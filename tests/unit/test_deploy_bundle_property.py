"""Unpacking anything at all: it is refused and nothing changed, or what is there is what the archive says."""

import gzip
import io
import stat
import tarfile
import tempfile
from pathlib import Path

from hypothesis import given
from hypothesis import strategies as st

from orpheusd.deploy.bundle import survey, unpack
from orpheusd.errors import OrpheusError
from tests.tars import END, GOOD, MANIFEST, checked, folder, member, pax, snapshot

GOOD_PARTS = st.sampled_from(["a", "b", "c", "d", "x.py", "å", "a b", "outside", "neighbour"])
BAD_PARTS = st.sampled_from([
    "A", "..", ".", "", "agent.yaml", "\u00c5", "\u212b", " a", "~", "-rf", "\n", "\0", "c\0d", "n" * 100, "é" * 60,
])
NAMES = st.lists(st.one_of(*[GOOD_PARTS] * 6, BAD_PARTS), min_size=1, max_size=4).map("/".join)
KINDS = st.sampled_from([
    *[tarfile.REGTYPE] * 12, *[tarfile.DIRTYPE] * 6, tarfile.AREGTYPE, tarfile.SYMTYPE, tarfile.LNKTYPE,
    tarfile.FIFOTYPE,
])


def one(name: str, kind: bytes, data: bytes, target: str, style: str) -> bytes:
    facts = {"linkname": target[:40]} if kind in (tarfile.SYMTYPE, tarfile.LNKTYPE) else {}
    body = b"" if kind not in (tarfile.REGTYPE, tarfile.AREGTYPE) else data
    if style == "pax":
        return pax(path=name.encode("utf-8", "surrogateescape")) + member("x", body, kind, **facts)
    if style == "gnu":
        long_name = name.encode("utf-8", "surrogateescape") + b"\0"
        return member("L", long_name, tarfile.GNUTYPE_LONGNAME) + member("x", body, kind, **facts)
    return member(name, body, kind, **facts)


MEMBERS = st.builds(one, NAMES, KINDS, st.binary(max_size=600), NAMES, st.sampled_from(["plain", "pax", "gnu"]))


def unpack_somewhere(content: bytes) -> None:
    with tempfile.TemporaryDirectory() as directory:
        root = Path(directory)
        (root / "outside").write_text("precious")
        place = root / "inside"
        (place / "neighbour").mkdir(parents=True)
        (place / "b.tgz").write_bytes(content)
        before = snapshot(root)
        try:
            found = survey(place / "b.tgz")
            unpack(place / "b.tgz", place / "target")
        except OrpheusError:
            assert snapshot(root) == before | {str(place): snapshot(root)[str(place)]}
            assert {path.name for path in place.iterdir()} == {"neighbour", "b.tgz"}
            return
        after = snapshot(root)
        mine = {path: facts for path, facts in after.items() if path.startswith(str(place / "target"))}
        assert {path: facts for path, facts in after.items() if path not in mine and path != str(place)} == {
            path: facts for path, facts in before.items() if path != str(place)}
        assert all(stat.S_ISREG(facts[2]) or stat.S_ISDIR(facts[2]) for facts in mine.values())
        assert {stat.S_IMODE(facts[2]) for facts in mine.values()} <= {0o644, 0o755}
        files = [path for path, facts in mine.items() if stat.S_ISREG(facts[2])]
        assert (len(files), sum(Path(path).stat().st_size for path in files)) == (found.files, found.size_bytes)
        assert (place / "target/agent.yaml").read_bytes().decode("utf-8-sig") == found.manifest_text


@given(st.lists(MEMBERS, max_size=6))
def test_any_list_of_members(members: list[bytes]) -> None:
    unpack_somewhere(gzip.compress(GOOD + b"".join(members) + END, 1))


@given(st.lists(st.tuples(st.integers(0, 7), st.integers(0, 511), st.integers(0, 255)), max_size=4), st.booleans())
def test_any_damage_to_a_sound_archive(damage: list[tuple[int, int, int]], with_right_checksums: bool) -> None:
    tar = GOOD + folder("d") + pax(path=b"d/long", mtime=b"1") + member("x", b"data") + END
    blocks = [bytearray(tar[start:start + 512]) for start in range(0, len(tar), 512)]
    headers = (0, 2, 3, 5)
    for number, place, value in damage:
        blocks[number][place] = value
    tar = b"".join(checked(block) if with_right_checksums and number in headers else bytes(block)
                   for number, block in enumerate(blocks))
    unpack_somewhere(gzip.compress(tar, 1))


@given(st.lists(st.tuples(st.integers(0, 400), st.integers(0, 255)), max_size=3), st.integers(0, 400))
def test_any_damage_to_a_compressed_archive(damage: list[tuple[int, int]], length: int) -> None:
    packed = bytearray(gzip.compress(GOOD + member("x", bytes(range(256))) + END))
    for place, value in damage:
        packed[place % len(packed)] = value
    unpack_somewhere(bytes(packed[: length or None]))


@given(st.dictionaries(
    st.lists(st.from_regex(r"[a-z][a-z0-9_. @+-]{0,10}", fullmatch=True), min_size=1, max_size=4).map("/".join),
    st.binary(max_size=300), max_size=6))
def test_what_the_library_packs_arrives(files: dict[str, bytes]) -> None:
    files = {name: data for name, data in files.items()
             if not any(other != name and other.startswith(f"{name}/") for other in files)}
    files["agent.yaml"] = MANIFEST
    stream = io.BytesIO()
    with tarfile.open(fileobj=stream, mode="w:gz") as archive:
        for name, data in files.items():
            info = tarfile.TarInfo(name)
            info.size = len(data)
            archive.addfile(info, io.BytesIO(data))
    with tempfile.TemporaryDirectory() as directory:
        (Path(directory) / "b.tgz").write_bytes(stream.getvalue())
        unpack(Path(directory) / "b.tgz", Path(directory) / "target")
        target = Path(directory) / "target"
        assert {path.relative_to(target).as_posix(): path.read_bytes()
                for path in target.rglob("*") if path.is_file()} == files
