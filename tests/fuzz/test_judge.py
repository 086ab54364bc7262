"""The fuzzer finds what is broken: each thing that its judge looks at is broken once, and seen."""

import os
import random
import signal
import socket
import threading
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import pytest

from orpheusd.errors import OrpheusError
from tests.eventually import eventually
from tests.fuzz import agent_yaml, campaign, control_frames, corpus
from tests.fuzz.house import BYSTANDER, Broken, House, Judge, doors
from tests.fuzz.mutation import mutated, mutated_lines
from tests.fuzz.reach import Reach
from tests.fuzz.targets import TARGETS


@pytest.fixture(scope="module")
def shared() -> Iterator[House]:
    with House() as one:
        yield one


@pytest.fixture
def house(shared: House) -> House:
    """With a judge that has not seen what other tests did."""
    shared.judge = Judge(shared.daemon, shared.place)
    return shared


@pytest.fixture
def own_house() -> Iterator[House]:
    with House() as one:
        yield one


def kill_the_door(house: House) -> None:
    before = doors(house.daemon)
    os.kill(before[-1], signal.SIGKILL)
    count = len(before)
    eventually(lambda: len(now := doors(house.daemon)) == count and now != before, 20.0, "the next door")


def raise_in_the_daemon(house: House) -> None:
    with (house.daemon.directory / "orpheusd.log").open("a") as log:
        log.write("Traceback (most recent call last):\n  File ...\nKeyError: 'planted'\n")


def forge_a_line(house: House) -> None:
    with (house.daemon.directory / "orpheusd.log").open("a") as log:
        log.write("2026-01-01T00:00:00 CRITICAL orpheusd.daemon: planted\n")


def restart_the_bystander(house: House) -> None:
    house.daemon.call("restart", agent=BYSTANDER)


def write_beside(house: House) -> None:
    (house.place / "planted").touch()


def write_into_its_code(house: House) -> None:
    next((house.daemon.state_dir / "agents" / BYSTANDER).rglob("agent.py")).write_text("planted = 1\n")


@pytest.mark.parametrize(("breaks", "says"), [
    (raise_in_the_daemon, "planted"),
    (forge_a_line, "CRITICAL"),
    (restart_the_bystander, "another agent's session is at turn 1"),
    (write_beside, "planted"),
    (write_into_its_code, "agent.py was"),
    (kill_the_door, "the HTTP door is another process"),
])
def test_the_judge_sees_what_is_broken(house: House, breaks: Callable[[House], None], says: str) -> None:
    assert house.judge.verdict() == []
    breaks(house)
    found = house.judge.verdict()
    assert says in found[0], found
    assert len(found) == 1 or breaks is kill_the_door, found  # of which the log tells as well


def test_the_judge_sees_a_daemon_that_died(own_house: House) -> None:
    os.kill(own_house.daemon.pid, signal.SIGKILL)
    eventually(lambda: not own_house.alive)
    assert own_house.judge.verdict() == ["the daemon is gone: exit code -9"]


def test_the_judge_sees_what_is_held_for_ever(house: House, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tests.fuzz.house.SETTLE_S", 0.2)
    held = [house.daemon.connect() for _ in range(50)]
    found = house.judge.verdict()
    for one in held:
        one.close()
    assert len(found) == 1 and "descriptors grew" in found[0], found


def test_the_judge_sees_a_daemon_that_stands_still(own_house: House, monkeypatch: pytest.MonkeyPatch) -> None:
    house = own_house
    monkeypatch.setattr("tests.fuzz.house.HEALTH_S", 0.2)
    os.kill(house.daemon.pid, signal.SIGSTOP)
    found = []
    thread = threading.Thread(target=lambda: found.extend(house.judge.verdict()))
    thread.start()
    eventually(lambda: not house.alive or found or resumed(house), 10.0)
    thread.join(30)
    assert "`health` was not answered" in found[0] and "the end of its log" in found[0]


def resumed(house: House) -> bool:
    """The signal that makes it tell where it stands waits until it goes on."""
    pending = Path(f"/proc/{house.daemon.pid}/status").read_text().split("ShdPnd:")[1].split()[0]
    if int(pending, 16) & 1 << signal.SIGABRT - 1:
        os.kill(house.daemon.pid, signal.SIGCONT)
        return True
    return False


def test_an_internal_error_is_no_answer() -> None:
    assert "invalid request" in agent_yaml.refused(OrpheusError("invalid-request", "planted"))
    with pytest.raises(Broken, match="planted"):
        agent_yaml.refused(OrpheusError("internal", "planted"))


def test_who_neither_answers_nor_hangs_up_is_broken(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(control_frames, "ANSWER_S", 0.1)
    ours, theirs = socket.socketpair()
    with ours, theirs:
        theirs.sendall(b"so far")
        with pytest.raises(Broken, match=r"neither answered nor hung up .* b'so far'"):
            control_frames.exchanged(ours, b"x\n")


class Faulty:
    """A target with two faults: its decoder trips over one byte, and it breaks the daemon's directory over another."""

    name = "faulty"
    tries = 1

    def seeds(self) -> list[bytes]:
        return [b"aaaa", b"aaab", b"aaac"]

    def mutated(self, dice: random.Random, data: bytes, others: Sequence[bytes]) -> bytes:
        return data[1:] + bytes([dice.randrange(97, 123)])

    def decode(self, data: bytes) -> object:
        return {b"x": 1 / 0} if data.endswith(b"x") else None

    def prepare(self, house: House) -> None:
        pass

    def send(self, house: House, data: bytes) -> set[str]:
        if data.endswith(b"y"):
            (house.place / "sown").touch()
        return {data[-1:].decode()}


def test_a_campaign_keeps_what_broke_something_and_tells_how_to_send_it_again(
    house: House, tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    monkeypatch.setattr(campaign, "BATCH_INPUTS", 4)
    one = campaign.Campaign(Faulty(), house, random.Random(1), tmp_path)
    one.go_on(2.0)
    decoder, judge = sorted(one.findings, key=lambda finding: "sown" in finding)[:2]
    assert "the decoder raised ZeroDivisionError" in decoder and "sown was None and is" in judge
    kept = corpus.load("faulty", tmp_path)
    crashes = {path: data[-1:] for path, data in kept.items() if path.name.startswith("crash-")}
    assert set(crashes.values()) == {b"x", b"y"} and len(kept) > len(crashes)
    assert all(str(path) in decoder + judge for path in crashes)
    assert "--target faulty --replay" in judge
    assert campaign.replay(Faulty(), [b"y"]) and not campaign.replay(Faulty(), [b"z"])


@pytest.mark.parametrize("name", TARGETS)
def test_a_seed_tells_all_inputs(name: str) -> None:
    def inputs(seed: int) -> list[bytes]:
        target, dice = TARGETS[name](), random.Random(seed)
        seeds = target.seeds()
        return [target.mutated(dice, dice.choice(seeds), seeds) for _ in range(200)]

    assert inputs(1) == inputs(1) != inputs(2)
    assert len(set(inputs(1))) > 150, "most of them are different"


def test_mutations_are_bounded() -> None:
    dice, data = random.Random(1), b'{"a": [1, {"b": null}]}\n'
    for _ in range(2000):
        data = dice.choice((mutated, mutated_lines))(dice, data, [data], [b"word"]) or data
        assert len(data) <= 16 * 1024


def test_only_steps_that_were_never_taken_count() -> None:
    reach = Reach()
    decode = TARGETS["agent.yaml"]().decode
    assert reach.new(decode, b"name: a\nruntime: python3\n") > 50
    assert reach.new(decode, b"name: a\nruntime: python3\n") == 0
    assert reach.new(decode, b"name: a\nruntime: python3\nenv: [A=b]\n") > 0
