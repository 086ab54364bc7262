"""Idempotency keys under way: one claim a key, and a fingerprint of all that is asked."""

import asyncio

import pytest

from orpheusd.core.events import RunRequested
from orpheusd.errors import OrpheusError
from orpheusd.keys import Bound, Claim, Keys, fingerprint

ASKED = RunRequested("r-1", "a", "s", "soft", "queue", True, 2.0)


def test_a_claim_tells_everybody_who_waits() -> None:
    async def scene() -> None:
        claim = Claim()
        waiting = [asyncio.create_task(claim.bound()) for _ in range(3)]
        await asyncio.sleep(0)
        waiting[0].cancel()  # who leaves takes nobody along
        claim.bind(Bound("r-1", "f"))
        told = await asyncio.gather(*waiting, return_exceptions=True)
        assert told[1:] == [Bound("r-1", "f")] * 2 == [await claim.bound()] * 2

    asyncio.run(scene())


@pytest.mark.parametrize("error", [OrpheusError("overloaded", "full"), RuntimeError("a fault")])
def test_a_claim_that_came_to_nothing_is_refused(error: BaseException) -> None:
    async def scene() -> None:
        claim = Claim()
        waiting = asyncio.create_task(claim.bound())
        await asyncio.sleep(0)
        claim.refuse(error)
        with pytest.raises(OrpheusError) as raised:
            await waiting
        assert raised.value.code == ("overloaded" if isinstance(error, OrpheusError) else "internal")
        Claim().refuse(error)  # nobody waits, and nobody complains of an exception that was not looked at

    asyncio.run(scene())


def test_a_key_is_released_by_its_own_claim_only() -> None:
    async def scene() -> None:
        keys = Keys()
        first = keys.claim("a", "k")
        assert keys.claim_of("a", "k") is first and keys.claim_of("b", "k") is None
        keys.release("a", "k", first)
        second = keys.claim("a", "k")
        keys.release("a", "k", first)
        assert keys.claim_of("a", "k") is second

    asyncio.run(scene())


def test_a_fingerprint_is_of_what_is_asked_and_of_nothing_else() -> None:
    whole = fingerprint(ASKED, {"a": 1, "b": [1, 2]})
    assert whole == fingerprint(ASKED._replace(run="r-2", readmitted=True), {"b": [1, 2], "a": 1})
    others = [
        fingerprint(ASKED._replace(agent="b"), {"a": 1, "b": [1, 2]}),
        fingerprint(ASKED._replace(session=None), {"a": 1, "b": [1, 2]}),
        fingerprint(ASKED._replace(affinity=None), {"a": 1, "b": [1, 2]}),
        fingerprint(ASKED._replace(overlap=None), {"a": 1, "b": [1, 2]}),
        fingerprint(ASKED._replace(require_warm=False), {"a": 1, "b": [1, 2]}),
        fingerprint(ASKED._replace(timeout_s=None), {"a": 1, "b": [1, 2]}),
        fingerprint(ASKED, {"a": 1, "b": [2, 1]}),
    ]
    assert len({whole, *others}) == 8
