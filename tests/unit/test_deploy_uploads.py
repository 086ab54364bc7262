"""Bundles on their way in: bounded in number, size and time."""

import asyncio
import base64
import os
import resource
import signal
from pathlib import Path

import pytest

from orpheusd.deploy import uploads
from orpheusd.deploy.uploads import LIFETIME_S, LIMIT_UPLOADS, Uploads
from orpheusd.errors import OrpheusError


class Clock:
    """A clock that the test turns."""

    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def under_way(tmp_path: Path, clock: Clock) -> Uploads:
    return Uploads(tmp_path, clock)


def append(to: Uploads, upload: str, piece: bytes) -> int:
    return asyncio.run(to.append(upload, base64.b64encode(piece).decode()))


def test_pieces_become_one_file(under_way: Uploads) -> None:
    upload = under_way.begin()
    assert [append(under_way, upload, piece) for piece in (b"ab", b"", b"cde")] == [2, 2, 5]
    path = under_way.open(upload)
    assert path.read_bytes() == b"abcde"
    assert path.stat().st_mode & 0o777 == 0o600
    under_way.drop(upload)
    under_way.drop(upload)
    assert not path.exists() and len(under_way) == 0


def test_what_is_claimed_stays_whoever_leaves(under_way: Uploads, clock: Clock) -> None:
    claimed, left = under_way.begin(), under_way.begin()
    path = under_way.claim(claimed)
    with pytest.raises(OrpheusError, match="being deployed already") as caught:
        under_way.claim(claimed)
    assert caught.value.code == "conflict"
    for upload in (claimed, left):
        under_way.abandon(upload)
    clock.now += 2 * LIFETIME_S
    under_way.expire()
    assert path.exists() and len(under_way) == 1
    under_way.drop(claimed)
    assert not path.exists()


def test_too_many_at_a_time_are_refused_and_one_less_is_not(under_way: Uploads) -> None:
    first, *_ = [under_way.begin() for _ in range(LIMIT_UPLOADS)]
    with pytest.raises(OrpheusError) as caught:
        under_way.begin()
    assert caught.value.code == "overloaded" and caught.value.retry_after_s
    under_way.drop(first)
    under_way.begin()


def test_too_much_drops_the_whole(under_way: Uploads, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(uploads, "LIMIT_BYTES", 10)
    upload = under_way.begin()
    assert append(under_way, upload, b"0123456789") == 10
    with pytest.raises(OrpheusError) as caught:
        append(under_way, upload, b"x")
    assert caught.value.code == "too-large"
    assert list(tmp_path.iterdir()) == []
    with pytest.raises(OrpheusError, match="no upload"):
        under_way.open(upload)


def test_what_nobody_goes_on_with_is_dropped(under_way: Uploads, clock: Clock, tmp_path: Path) -> None:
    upload, other = under_way.begin(), under_way.begin()
    clock.now += LIFETIME_S - 1
    append(under_way, upload, b"x")
    clock.now += 1
    assert under_way.open(upload).read_bytes() == b"x"
    with pytest.raises(OrpheusError) as caught:
        append(under_way, other, b"y")
    assert caught.value.code == "not-found"
    clock.now += LIFETIME_S
    under_way.expire()
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("upload", ["", "../../etc/passwd", "0" * 32])
def test_an_unknown_upload_is_not_found(under_way: Uploads, upload: str) -> None:
    for attempt in (under_way.open, lambda one: append(under_way, one, b"x")):
        with pytest.raises(OrpheusError) as caught:
            attempt(upload)
        assert caught.value.code == "not-found"


def test_a_piece_that_the_disk_does_not_take_ends_the_upload(under_way: Uploads, tmp_path: Path) -> None:
    # fault 47: to go on after a part of it would spoil the bundle
    upload = under_way.begin()
    earlier = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1000, limits[1]))
    try:
        with pytest.raises(OSError, match="File too large"):
            append(under_way, upload, b"x" * 2000)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
        signal.signal(signal.SIGXFSZ, earlier)
    with pytest.raises(OrpheusError, match="no upload"):
        append(under_way, upload, b"y")
    assert list(tmp_path.iterdir()) == []


def test_a_piece_of_any_length_arrives_as_it_was(under_way: Uploads) -> None:
    upload, whole = under_way.begin(), b""
    for size_bytes in (1, 2, 3, uploads._STRETCH - 1, uploads._STRETCH * 3 // 4, uploads._STRETCH + 1, 300_000):
        piece = os.urandom(size_bytes)
        whole += piece
        assert append(under_way, upload, piece) == len(whole)
    assert under_way.open(upload).read_bytes() == whole


@pytest.mark.parametrize("encoded", [
    "AAA", "AA=A", "AAAA====", "A A A A ", "AAAA\n", "é" * 4, "-_-_", "A" * (uploads._STRETCH - 4) + "AA==" + "AAAA"])
def test_what_is_no_base64_drops_the_whole(under_way: Uploads, tmp_path: Path, encoded: str) -> None:
    upload = under_way.begin()
    with pytest.raises(OrpheusError, match="not base64") as caught:
        asyncio.run(under_way.append(upload, encoded))
    assert caught.value.code == "invalid-request"
    assert list(tmp_path.iterdir()) == []


def test_a_piece_that_is_too_large_is_refused_and_the_rest_stays(under_way: Uploads) -> None:
    upload = under_way.begin()
    assert append(under_way, upload, b"x" * uploads.PIECE_LIMIT_BYTES) == uploads.PIECE_LIMIT_BYTES
    with pytest.raises(OrpheusError) as caught:
        append(under_way, upload, b"x" * (uploads.PIECE_LIMIT_BYTES + 1))
    assert caught.value.code == "too-large"
    assert append(under_way, upload, b"x") == uploads.PIECE_LIMIT_BYTES + 1


@pytest.mark.parametrize("dropped", [False, True])
def test_a_disk_that_hangs_holds_up_nobody_and_nothing_overtakes_a_piece(under_way: Uploads, dropped: bool) -> None:
    upload = under_way.begin()
    path = under_way.open(upload)
    path.unlink()
    os.mkfifo(path)  # to open it for writing waits for a reader

    async def scenario() -> int:
        first = asyncio.create_task(under_way.append(upload, "AAAA"))
        await asyncio.sleep(0)
        with pytest.raises(OrpheusError, match="still being written") as caught:
            await under_way.append(upload, "BBBB")
        assert caught.value.code == "conflict"
        for refused in (under_way.open, under_way.claim):
            with pytest.raises(OrpheusError, match="still being written"):
                refused(upload)
        reader = os.open(path, os.O_RDONLY | os.O_NONBLOCK)
        try:
            if dropped:
                under_way.abandon(upload)
            return await first
        finally:
            os.close(reader)

    if not dropped:
        assert asyncio.run(scenario()) == 3
        return
    with pytest.raises(OrpheusError, match="no upload"):
        asyncio.run(scenario())
    assert not path.exists()
