"""One target for a while: inputs are made, tried on the decoder here, sent to the daemon, and judged by the batch."""

import random
import time
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import NamedTuple

from orpheusd.errors import OrpheusError
from tests.fuzz import corpus
from tests.fuzz.house import MIB, Broken, House
from tests.fuzz.reach import Reach
from tests.fuzz.target import Target

#: The judge looks after so many inputs, or so long: often enough to know which of them it was.
BATCH_INPUTS = 100
BATCH_S = 3.0
#: What tells that an input was not answered as it must be.
WRONG = (Broken, OrpheusError, OSError, EOFError, AssertionError)
#: More would be the same again.
FINDINGS_LIMIT = 10


class Report(NamedTuple):
    """What a campaign did and found. `decoded` inputs were tried on the decoder, `sent` of them on the daemon."""

    target: str
    seconds: float
    decoded: int
    sent: int
    batches: int
    answers: int
    kept: int
    growth: str
    findings: list[str]

    def line(self) -> str:
        return (f"{self.target:11} {self.sent:6} inputs in {self.seconds:.0f} s ({self.decoded} decoded), "
                f"{self.answers} different answers, judged {self.batches} times; {self.growth}; {self.kept} kept; "
                f"{len(self.findings)} findings")


class Parent(NamedTuple):
    """An input that others are made of, and how long the daemon took for it."""

    data: bytes
    took_s: float


class Campaign:
    """Invariant: `pool` has the seeds, the corpus, and every input since that was new in some way."""

    def __init__(self, target: Target, house: House, dice: random.Random, place: Path = corpus.PLACE) -> None:
        self.findings: list[str] = []
        self.decoded = self.sent = self.batches = self.kept = 0
        self.answers: set[str] = set()
        self.over = False
        self._target = target
        self._place = place
        self._house = house
        self._dice = dice
        self._reach = Reach()
        self._batch: list[bytes] = []
        self.pool: list[Parent] = []

    def go_on(self, seconds: float) -> None:
        known = {*self._target.seeds(), *corpus.load(self._target.name, self._place).values()}
        for data in sorted(known):
            self._steps(data)
            self._send(data)
        until = time.monotonic() + seconds
        while time.monotonic() < until and len(self.findings) < FINDINGS_LIMIT and not self.over:
            self._one_batch(until)
        if not self.over:
            self._judge()

    def _one_batch(self, until: float) -> None:
        self._target.prepare(self._house)
        late = min(until, time.monotonic() + BATCH_S)
        while self._house.alive and len(self._batch) < BATCH_INPUTS and time.monotonic() < late:
            data, steps = self._next()
            if self._send(data, steps > 0):
                self.kept += corpus.keep(self._target.name, data, self._place) is not None
        self._judge()

    def _next(self) -> tuple[bytes, int]:
        """The first of some inputs that leads the decoder somewhere new, else the last."""
        data, steps = b"", 0
        for _ in range(self._target.tries):
            # of two parents the quicker one: a deploy takes as long as hundreds of questions
            parents = self._dice.choices(self.pool, k=2)
            data = self._target.mutated(self._dice, min(parents, key=lambda one: one.took_s).data,
                                        [one.data for one in self._dice.choices(self.pool, k=4)])
            steps = self._steps(data)
            if steps:
                break
        return data, steps

    def _steps(self, data: bytes) -> int:
        self.decoded += 1
        try:
            return self._reach.new(self._target.decode, data)
        except Exception as error:  # whatever it is, an input has found it
            self._found(f"the decoder raised {type(error).__name__}: {error}", [data])
            return 1

    def _send(self, data: bytes, wanted: bool = True) -> bool:
        """Whether it was new: `wanted` for what it did to the decoder, or by an answer. Others are made of it then."""
        self.sent += 1
        self._batch.append(data)
        started = time.monotonic()
        try:
            answers = self._target.send(self._house, data)
        except WRONG as error:
            self._found(f"{type(error).__name__}: {error}", [data])
            return False
        if not wanted and answers <= self.answers:
            return False
        self.answers |= answers
        self.pool.append(Parent(data, time.monotonic() - started))
        return True

    def _judge(self) -> None:
        batch, self._batch = self._batch, []
        self.batches += 1
        found = self._house.judge.verdict()
        if found:
            self._found("\n  ".join(found), culprits(self._target, batch))
            self._house.judge.told()
        if found and not self._house.alive:
            self.over = True

    def _found(self, what: str, inputs: Sequence[bytes]) -> None:
        if any(what.splitlines()[-1] in earlier for earlier in self.findings):
            return
        paths = [corpus.keep_crash(self._target.name, data, self._place) for data in inputs]
        again = f"python -m tests.fuzz --target {self._target.name} --replay"
        self.findings.append(f"{self._target.name}: {what}\n  {again} {' '.join(map(_shown, paths))}")


def run(target: Target, seconds: float, seed: int) -> Report:
    """Fuzz one target in a house of its own."""
    with House(target.prepare) as house:
        campaign = Campaign(target, house, random.Random(f"{seed} {target.name}"))
        started = time.monotonic()
        campaign.go_on(seconds)
        took_s = time.monotonic() - started
        most, before = house.judge.most, house.judge.before
        growth = (f"at most {(most.rss_bytes - before.rss_bytes) / MIB:+.0f} MiB, "
                  f"{most.fds - before.fds:+d} descriptors, {most.processes - before.processes:+d} processes")
        if not campaign.over:
            campaign.findings += [f"{target.name}: {what}" for what in house.stop()]
    return Report(target.name, took_s, campaign.decoded, campaign.sent, campaign.batches, len(campaign.answers),
    campaign.kept,
                  growth, campaign.findings)


def replay(target: Target, inputs: Iterable[bytes]) -> list[str]:
    """Send the inputs in order to a fresh daemon; a sentence for each thing that was not right."""
    found: list[str] = []
    with House(target.prepare) as house:
        for data in inputs:
            try:
                target.decode(data)
            except OrpheusError:
                pass
            except Exception as error:  # likewise
                found.append(f"the decoder raised {type(error).__name__}: {error}")
            try:
                target.send(house, data)
            except WRONG as error:
                found.append(f"{type(error).__name__}: {error}")
        return [*found, *house.judge.verdict()]


def culprits(target: Target, batch: list[bytes]) -> list[bytes]:
    """The first half, or quarter, or one, of the batch that breaks a fresh daemon as well; else all of it."""
    while len(batch) > 1:
        half = len(batch) // 2
        for part in (batch[:half], batch[half:]):
            if replay(target, part):
                batch = part
                break
        else:
            return batch
    return batch


def _shown(path: Path) -> str:
    return str(path.relative_to(Path.cwd())) if path.is_relative_to(Path.cwd()) else str(path)
