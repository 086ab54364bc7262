"""Unpacking: every hostile shape is refused as a whole, nothing outside is touched, nothing is left behind."""

import gzip
import io
import os
import random
import resource
import signal
import stat
import tarfile
from pathlib import Path

import pytest

from orpheusd.deploy import bundle
from orpheusd.deploy.bundle import LIMIT_BYTES, LIMIT_DEPTH, LIMIT_MEMBERS, read_manifest_text, survey, unpack
from orpheusd.errors import OrpheusError
from tests.tars import END, GOOD, MANIFEST, folder, header, member, packed, pax, snapshot


def many(count: int) -> bytes:
    return b"".join(header(f"f{number}") for number in range(count))


#: Name, the tar (the end is added), words of the refusal.
INVALID: list[tuple[str, bytes, str]] = [
    ("parent", GOOD + member("../outside", b"x"), "leads out of the folder"),
    ("parent inside", GOOD + member("a/../../outside", b"x"), "leads out of the folder"),
    ("absolute", GOOD + member("/tmp/x", b"x"), "is an absolute path"),
    ("pax absolute", GOOD + pax(path=b"/etc/x") + member("ok", b"x"), "is an absolute path"),
    ("long absolute", GOOD + member("L", b"/etc/x\0", tarfile.GNUTYPE_LONGNAME) + member("ok"), "is an absolute"),
    ("dot part", GOOD + member("a/./b"), "an empty part"),
    ("empty part", GOOD + member("a//b"), "an empty part"),
    ("empty name", GOOD + member(""), "an empty part"),
    ("file that ends like a folder", GOOD + member("a/"), "an empty part"),
    ("symlink", GOOD + member("l", kind=tarfile.SYMTYPE, linkname="/etc"), "is a symlink"),
    ("symlink in the tree", GOOD + member("l", kind=tarfile.SYMTYPE, linkname="agent.yaml"), "is a symlink"),
    ("write through a symlink", GOOD + member("l", kind=tarfile.SYMTYPE, linkname="..") + member("l/outside", b"x"),
     "is a symlink"),
    ("symlink chain that grows beyond PATH_MAX", GOOD + b"".join(
        folder("d" * 200 + f"/{n}") + member(f"s{n}", kind=tarfile.SYMTYPE, linkname="d" * 90) for n in range(16)),
        "is a symlink"),
    ("hard link", GOOD + member("l", kind=tarfile.LNKTYPE, linkname="/etc/passwd"), "is a hard link"),
    ("character device", GOOD + member("d", kind=tarfile.CHRTYPE), "is a device"),
    ("block device", GOOD + member("d", kind=tarfile.BLKTYPE), "is a device"),
    ("named pipe", GOOD + member("p", kind=tarfile.FIFOTYPE), "is a named pipe"),
    ("contiguous file", GOOD + member("c", kind=tarfile.CONTTYPE), "neither a file nor a folder"),
    ("sparse file", GOOD + member("s", kind=tarfile.GNUTYPE_SPARSE), "is a sparse file"),
    ("unknown type", GOOD + member("u", kind=b"Z"), "neither a file nor a folder"),
    ("long link name", GOOD + member("K", b"x\0", tarfile.GNUTYPE_LONGLINK) + member("ok"), "is a link"),
    ("NUL-cut name", GOOD + header(b"ok.py\0/../../evil"), "a NUL in its name"),
    ("NUL in a long name", GOOD + member("L", b"a\0b\0", tarfile.GNUTYPE_LONGNAME) + member("ok"), "NUL"),
    ("NUL in a pax name", GOOD + pax(path=b"a\0b") + member("ok"), "a name that is not allowed"),
    ("twice", GOOD + member("b.py", b"1") + member("b.py", b"2"), "in the bundle twice"),
    ("agent.yaml twice", GOOD + GOOD, "in the bundle twice"),
    ("folder twice", GOOD + folder("d") + folder("d"), "in the bundle twice"),
    ("twice by case", GOOD + member("B.py") + member("b.py"), "twice, spelled differently ('B.py')"),
    ("twice by a folder's case", GOOD + member("D/a") + member("d/b"), "spelled differently ('D')"),
    ("twice by accent", GOOD + member("\u00c5") + member("\u212b"), "spelled differently"),
    ("twice by sharp s", GOOD + member("ß") + member("SS"), "spelled differently"),
    ("a file as a folder", GOOD + member("d", b"x") + member("d/x"), "lies in something that is a file"),
    ("a folder as a file", GOOD + member("d/x") + member("d"), "in the bundle twice"),
    ("too deep", GOOD + pax(path=b"/".join([b"d"] * (LIMIT_DEPTH + 1))) + member("x"), "folders deep"),
    ("long part", GOOD + pax(path=b"n" * 242) + member("x"), "a name that is not allowed"),
    ("long part in bytes", GOOD + pax(path="é".encode() * 130) + member("x"), "too long a name"),
    ("long name", GOOD + pax(path=b"/".join([b"n" * 200] * 6)) + member("x"), "too long a name"),
    ("not UTF-8", GOOD + member(b"\xff.py"), "is not a UTF-8 name"),
    ("line break", GOOD + member("a\nb"), "a name that is not allowed ('a\\nb')"),
    ("escape", GOOD + member("a\x1b[31m"), "a name that is not allowed"),
    ("right to left", GOOD + member("a\u202eb"), "a name that is not allowed"),
    ("leading space", GOOD + member(" a"), "a name that is not allowed"),
    ("shell", GOOD + member("a;b"), "a name that is not allowed"),
    ("backslash", GOOD + member("..\\x"), "a name that is not allowed"),
    ("negative size", GOOD + header("n", size=-512), "impossible size -512"),
    ("negative extension", GOOD + header("n", tarfile.XHDTYPE, -512), "an extended header of -512"),
    ("folder with data", GOOD + header("d", tarfile.DIRTYPE, 512), "impossible size 512"),
    ("size in pax", GOOD + pax(size=b"0") + member("x", b"y"), "not allowed (size)"),
    ("sparse in pax", GOOD + pax(GNU__sparse__name=b"/etc/x") + member("x"), "not allowed (GNU.sparse.name)"),
    ("link in pax", GOOD + pax(linkpath=b"/etc/x") + member("x"), "not allowed (linkpath)"),
    ("path for all", pax(tarfile.XGLTYPE, path=b"x") + GOOD, "not allowed (path)"),
    ("two pax headers", GOOD + pax(mtime=b"1") + pax(path=b"x") + member("y"), "two extended headers"),
    ("two names", GOOD + pax(path=b"x") + member("L", b"z\0", tarfile.GNUTYPE_LONGNAME) + member("y"),
     "has two names"),
    ("pax that never ends", GOOD + member("p", b"0 path=x\n", tarfile.XHDTYPE) + member("y"), "malformed"),
    ("pax without a break", GOOD + member("p", b"9 path=xyz", tarfile.XHDTYPE) + member("y"), "malformed"),
    ("pax too long", GOOD + member("p", b"x" * 20_000, tarfile.XHDTYPE) + member("y"), "extended header of 20000"),
    ("bad checksum", GOOD + bytes(512 - 1) + b"x" + member("y"), "not a tar header"),
    ("no archive", b"hello" * 1000, "holds no tar archive"),
    ("nothing", b"", "ends too early"),
    ("empty archive", END, "holds no files"),
    ("folders only", folder("d") + END, "holds no files"),
    ("no agent.yaml", member("agent.py") + END, "no agent.yaml at its top"),
    ("folder packed, not its content", member("my/agent.yaml", MANIFEST), "there is my/agent.yaml: pack the content"),
    ("agent.yaml is a folder", folder("agent.yaml") + member("x"), "no agent.yaml at its top"),
    ("agent.yaml not UTF-8", member("agent.yaml", b"name: a\nx: \xff"), "line 2 is not UTF-8"),
    ("bomb of headers", GOOD + member("p", b"\0" * 16_000, tarfile.XGLTYPE) * 300, "malformed"),
    ("something after the end", GOOD + END + member("evil", b"x"), "something after its end"),
    ("data cut short", GOOD + header("b", size=5000) + b"x" * 100, "ends too early"),
    ("no end", GOOD, "ends too early"),
    ("header cut short", GOOD + GOOD[:100], "ends too early"),
]
TOO_LARGE: list[tuple[str, bytes, str]] = [
    ("too many", GOOD + many(LIMIT_MEMBERS), f"more than {LIMIT_MEMBERS} files"),
    ("too much, by its header", GOOD + header("big", size=LIMIT_BYTES), f"more than {LIMIT_BYTES} bytes"),
    ("agent.yaml too long", member("agent.yaml", random.Random(1).randbytes(70_000)), "at most 65536 are allowed"),
    ("bomb", GOOD + member("zeros", b"\0" * 3_000_000), "inflates to more than 100 times"),
]
SHAPES = [*INVALID, *TOO_LARGE]
#: Those whose point is how they end.
AS_THEY_ARE = ("nothing", "no archive", "something after the end", "data cut short", "no end", "header cut short")
#: Those that only the survey can refuse, because something is missing or agent.yaml is bad; and one that is slow.
FOR_THE_SURVEY = (
    "empty archive", "folders only", "folder packed, not its content", "no agent.yaml", "agent.yaml is a folder",
    "agent.yaml too long", "agent.yaml not UTF-8", "too many",
)


@pytest.fixture
def place(tmp_path: Path) -> Path:
    """A directory to unpack in, with neighbours that must not change."""
    (tmp_path / "outside").write_text("precious")
    (tmp_path / "inside/neighbour").mkdir(parents=True)
    (tmp_path / "inside/neighbour/agent.yaml").write_text("theirs")
    return tmp_path / "inside"


def shape(path: Path, name: str, tar: bytes) -> Path:
    return packed(path, tar if name in AS_THEY_ARE else tar + END)


@pytest.mark.parametrize(("name", "tar", "words"), SHAPES, ids=[row[0] for row in SHAPES])
def test_a_hostile_shape_is_refused_and_leaves_nothing(place: Path, name: str, tar: bytes, words: str) -> None:
    # fault 77
    file = shape(place / "b.tgz", name, tar)
    before = snapshot(place.parent)
    for attempt in (lambda: survey(file), lambda: read_manifest_text(file), lambda: unpack(file, place / "target")):
        with pytest.raises(OrpheusError) as caught:
            attempt()
        assert words in caught.value.message
        assert caught.value.code == ("too-large" if (name, tar, words) in TOO_LARGE else "invalid-request")
        assert caught.value.message.isprintable() and len(caught.value.message) < 700
    assert snapshot(place.parent) == before


@pytest.mark.parametrize(
    ("name", "tar"), [row[:2] for row in SHAPES if row[0] not in FOR_THE_SURVEY],
    ids=[row[0] for row in SHAPES if row[0] not in FOR_THE_SURVEY])
def test_what_changes_after_it_was_judged_is_refused_as_well(
        place: Path, name: str, tar: bytes, monkeypatch: pytest.MonkeyPatch) -> None:
    file = shape(place / "b.tgz", name, tar)
    before = snapshot(place.parent)
    monkeypatch.setattr(bundle, "_survey", lambda stream: None)
    with pytest.raises(OrpheusError):
        unpack(file, place / "target")
    after = snapshot(place.parent)
    after[str(place)] = before[str(place)]  # its own time changed: a temporary folder came and went
    assert after == before


@pytest.mark.parametrize(("content", "words"), [
    (b"", "ends too early"),
    (b"hello, I am text", "not a whole tar.gz"),
    (GOOD + END, "not a whole tar.gz"),
    (gzip.compress(GOOD + END)[:-12], "ends too early"),
    (gzip.compress(GOOD + END)[:-8] + b"\1\2\3\4\0\0\0\0", "not a whole tar.gz"),
    (gzip.compress(GOOD + END)[:10] + b"\xff" * 40, "is damaged"),
], ids=["empty", "text", "tar", "cut", "wrong sum", "wrong bits"])
def test_what_is_no_tar_gz(place: Path, content: bytes, words: str) -> None:
    (place / "b.tgz").write_bytes(content)
    before = snapshot(place.parent)
    with pytest.raises(OrpheusError, match=words):
        unpack(place / "b.tgz", place / "target")
    assert snapshot(place.parent) == before


def test_what_is_inflated_is_counted_not_believed(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    noise = random.Random(1).randbytes(200_000)
    file = packed(place / "b.tgz", GOOD + member("noise", noise) + END)
    monkeypatch.setattr(bundle, "LIMIT_INFLATED_BYTES", 100_000)
    with pytest.raises(OrpheusError, match="holds more than 100000 bytes") as caught:
        survey(file)
    assert caught.value.code == "too-large"


@pytest.mark.parametrize("format", [tarfile.USTAR_FORMAT, tarfile.GNU_FORMAT, tarfile.PAX_FORMAT])
@pytest.mark.parametrize("prefix", ["", "./"])
def test_what_usual_tools_make_is_unpacked(place: Path, format: int, prefix: str) -> None:
    files = {"agent.yaml": MANIFEST, "agent.py": b"x", "requirements.txt": b"six\n", "pkg/sub/é.py": b"", "a b": b"2"}
    if format != tarfile.USTAR_FORMAT:
        files["/".join(["long" * 20] * 5)] = b"3"
    stream = io.BytesIO()
    with tarfile.open(fileobj=stream, mode="w:gz", format=format) as archive:
        if prefix:
            archive.addfile(folder_info("./"))
            archive.addfile(folder_info("./pkg"))
        for name, data in files.items():
            info = tarfile.TarInfo(prefix + name)
            info.size, info.mtime = len(data), 1.5 if format == tarfile.PAX_FORMAT else 1
            info.mode = 0o6755 if name == "agent.py" else 0o600
            archive.addfile(info, io.BytesIO(data))
    (place / "b.tgz").write_bytes(stream.getvalue())
    found = survey(place / "b.tgz")
    assert found == (MANIFEST.decode(), True, len(files), sum(map(len, files.values())))
    unpack(place / "b.tgz", place / "target")
    assert {path.relative_to(place / "target").as_posix(): path.read_bytes()
            for path in (place / "target").rglob("*") if path.is_file()} == files
    modes = {path.name: stat.S_IMODE(path.stat().st_mode) for path in (place / "target").rglob("*")}
    assert modes["agent.py"] == 0o755 and modes["pkg"] == 0o755
    assert {modes[name] for name in ("agent.yaml", "é.py")} == {0o644}
    assert sorted(path.name for path in place.iterdir()) == ["b.tgz", "neighbour", "target"]


def folder_info(name: str) -> tarfile.TarInfo:
    info = tarfile.TarInfo(name)
    info.type, info.mode = tarfile.DIRTYPE, 0o700
    return info


def test_modes_are_the_same_under_any_umask(place: Path) -> None:
    file = packed(place / "b.tgz", GOOD + folder("d") + member("d/x", b"1", mode=0o777) + END)
    earlier = os.umask(0o077)
    try:
        unpack(file, place / "target")
    finally:
        os.umask(earlier)
    written = [place / "target", *(place / "target").rglob("*")]
    found = {path.name: stat.S_IMODE(path.stat().st_mode) for path in written}
    assert found == {"target": 0o755, "agent.yaml": 0o644, "d": 0o755, "x": 0o755}


def test_a_global_comment_and_times_are_harmless(place: Path) -> None:
    tar = pax(tarfile.XGLTYPE, comment=b"0" * 40) + pax(mtime=b"1.5", SCHILY__xattr__user=b"x") + GOOD
    file = packed(place / "b.tgz", tar + END + b"\0" * 8192)
    assert read_manifest_text(file) == MANIFEST.decode()


def test_a_byte_order_mark_is_no_part_of_the_text(place: Path) -> None:
    file = packed(place / "b.tgz", member("agent.yaml", b"\xef\xbb\xbf" + MANIFEST) + END)
    assert read_manifest_text(file) == MANIFEST.decode()


def test_small_files_may_compress_well_and_limits_are_reached(place: Path) -> None:
    file = packed(place / "b.tgz", GOOD + member("zeros", b"\0" * 900_000) + many(LIMIT_MEMBERS - 2)[:512 * 200] + END)
    assert survey(file).files == 202


def test_what_exists_is_not_unpacked_over(place: Path) -> None:
    file = packed(place / "b.tgz", GOOD + END)
    before = snapshot(place / "neighbour")
    with pytest.raises(FileExistsError):
        unpack(file, place / "neighbour")
    (place / "dangling").symlink_to(place / "nowhere")
    with pytest.raises(FileExistsError):
        unpack(file, place / "dangling")
    assert snapshot(place / "neighbour") == before
    assert not (place / "nowhere").exists()


def test_a_full_disk_leaves_nothing(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    # fault 47 for bundles: a limit on the file size stands for the full disk
    file = packed(place / "b.tgz", GOOD + member("big", random.Random(1).randbytes(300_000)) + END)
    before = set(place.iterdir())
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    earlier = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, limits[1]))
    try:
        with pytest.raises(OrpheusError, match="cannot unpack: File too large") as caught:
            unpack(file, place / "target")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
        signal.signal(signal.SIGXFSZ, earlier)
    assert caught.value.code == "internal"
    assert set(place.iterdir()) == before
