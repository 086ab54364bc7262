"""The worker protocol, both ends joined in memory: what may be said, what may not, and who is to blame."""

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from orpheusd.wire.worker import (
    ENDED_STATES,
    LONG_FIELDS,
    MESSAGES,
    NAME_LIMIT,
    PROTOCOL_VERSION,
    TRANSITIONS,
    LinkState,
    Message,
    ProtocolViolation,
    Role,
    WorkerLink,
)

EXAMPLE: dict[type, Any] = {str: "text", int: 7, float: 0.5, bool: True, type(None): None, list: [], dict: {}}
INSIDE = (Role.TEMPLATE, Role.WORKER)


def dumps(value: Any) -> bytes:
    return json.dumps(value).encode()


def link(role: Role, limit_bytes: int = 10_000) -> WorkerLink:
    return WorkerLink(role, json.loads, dumps, limit_bytes)


def fields_of(type: str, which: int = 0) -> dict[str, Any]:
    """Fields that fit; `which` chooses among the types a field may have."""
    return {name: EXAMPLE[types[which % len(types)]] for name, types in MESSAGES[type].fields.items()}


def joined(role: Role, state: LinkState = LinkState.READY) -> tuple[WorkerLink, WorkerLink]:
    """The supervisor's end and the other, brought to a state by what is said on the way there."""
    ours, theirs = link(Role.SUPERVISOR), link(role)
    if state is not LinkState.CONNECTED:
        hello = {"protocol": PROTOCOL_VERSION, "role": role.value, "id": "x-1", "nonce": "n"}
        ours.receive(theirs.send("hello", hello))
    if state is LinkState.READY:
        ours.receive(theirs.send("ready", {"handler": "sync"}))
    if state is LinkState.FAILED:
        ours.receive(theirs.send("failed", {"code": "handler-failed"}, b"{}"))
    assert (ours.state, theirs.state) == (state, state)
    return ours, theirs


CASES = [(type, sender, state) for type, row in MESSAGES.items() for sender in Role for state in LinkState]
ALLOWED = [(type, sender, state) for type, sender, state in CASES
           if sender in MESSAGES[type].senders and state in MESSAGES[type].states and type != "hello"]
REFUSED = [case for case in CASES if case not in ALLOWED and case[0] != "hello"]


@pytest.mark.parametrize(("type", "sender", "state"), ALLOWED)
def test_what_the_table_allows_passes(type: str, sender: Role, state: LinkState) -> None:
    for role in INSIDE if sender is Role.SUPERVISOR else (sender,):
        for which in range(3):
            ours, theirs = joined(role, state)
            speaker, listener = (ours, theirs) if sender is Role.SUPERVISOR else (theirs, ours)
            payload = b'{"some": "payload"}' if MESSAGES[type].payload else b""
            fields = fields_of(type, which)
            assert listener.receive(speaker.send(type, fields, payload)) == [Message(type, fields, payload)]
            assert speaker.state == listener.state == TRANSITIONS.get(type, state)


@pytest.mark.parametrize(("type", "sender", "state"), REFUSED)
def test_what_the_table_does_not_allow_is_refused_at_both_ends(type: str, sender: Role, state: LinkState) -> None:
    role = Role.WORKER if sender is Role.SUPERVISOR else sender
    ours, theirs = joined(role, state)
    speaker, listener = (ours, theirs) if sender is Role.SUPERVISOR else (theirs, ours)
    with pytest.raises(ProtocolViolation, match=r"^we said"):
        speaker.send(type, fields_of(type), b"{}")
    with pytest.raises(ProtocolViolation, match=r"^the peer said|^the first message"):
        listener.receive(dumps({"type": type, **fields_of(type)}) + b"\n{}\n")


@pytest.mark.parametrize("type", [type for type in MESSAGES if type != "hello"])
@pytest.mark.parametrize("wrong", ["missing", "extra", "type", "bool for int"])
def test_fields_must_be_the_tables(type: str, wrong: str) -> None:
    row = MESSAGES[type]
    fields = fields_of(type)
    names = [name for name, types in row.fields.items() if wrong != "bool for int" or types == (int,)]
    if wrong != "extra" and not names:
        return
    if wrong == "missing":
        del fields[names[0]]
    elif wrong == "extra":
        fields["surplus"] = 1
    elif wrong == "type":
        fields[names[0]] = {"no": "such"} if list in row.fields[names[0]] else ["a list"]
    else:
        fields[names[0]] = True
    role = row.senders[-1] if row.senders[-1] is not Role.SUPERVISOR else Role.WORKER
    ours, theirs = joined(role, row.states[-1])
    speaker, listener = (ours, theirs) if Role.SUPERVISOR in row.senders else (theirs, ours)
    with pytest.raises(ProtocolViolation, match="with fields that are not"):
        speaker.send(type, fields, b"{}")
    with pytest.raises(ProtocolViolation, match="with fields that are not"):
        listener.receive(dumps({"type": type, **fields}) + b"\n")


@pytest.mark.parametrize(("type", "name"), [
    (type, name) for type, row in MESSAGES.items() for name, types in row.fields.items()
    if str in types and row.senders != (Role.SUPERVISOR,) and name != "role"])
def test_names_are_short(type: str, name: str) -> None:
    row = MESSAGES[type]

    def heard(text: str) -> list[Message]:
        fields = {**fields_of(type), "role": "worker"} if type == "hello" else fields_of(type)
        ours, _ = joined(row.senders[-1], row.states[-1])
        return ours.receive(dumps({"type": type, **fields, name: text}) + b"\n{}\n"[: 4 if row.payload else 1])

    assert heard("x" * NAME_LIMIT)[0].fields[name] == "x" * NAME_LIMIT
    if name in LONG_FIELDS:
        assert heard("x" * (NAME_LIMIT + 1))
        return
    with pytest.raises(ProtocolViolation, match=f"257 characters of '{name}'"):
        heard("x" * (NAME_LIMIT + 1))


@pytest.mark.parametrize("line", [
    b"", b"not json", b"[]", b"1", b"null", b'"hello"', b"{}", b'{"type": 1}', b'{"type": null}',
    b'{"type": "nonsense"}', b"\xff\xfe", b"[" * 100_000, b'{"type": "ended"}',
])
def test_a_line_that_is_no_message_is_the_peers_fault(line: bytes) -> None:
    ours = link(Role.SUPERVISOR, 1 << 20)
    with pytest.raises(ProtocolViolation, match=r"the peer|the first message"):
        ours.receive(line + b"\n")


@pytest.mark.parametrize("role", ["supervisor", "nobody", "", "Worker"])
def test_only_a_template_or_a_worker_may_introduce_itself(role: str) -> None:
    with pytest.raises(ProtocolViolation, match="must be a hello"):
        link(Role.SUPERVISOR).receive(
            dumps({"type": "hello", "protocol": 1, "role": role, "id": "x", "nonce": "n"}) + b"\n")


def test_hello_is_said_once() -> None:
    ours, theirs = joined(Role.WORKER, LinkState.STARTING)
    hello = {"protocol": 1, "role": "worker", "id": "x-1", "nonce": "n"}
    with pytest.raises(ProtocolViolation, match="while the link was starting"):
        theirs.send("hello", hello)
    with pytest.raises(ProtocolViolation, match="while the link was starting"):
        ours.receive(dumps({"type": "hello", **hello}) + b"\n")


def test_the_supervisor_learns_who_dialled() -> None:
    ours, _ = joined(Role.TEMPLATE, LinkState.STARTING)
    assert ours.peer is Role.TEMPLATE


def test_a_frame_over_the_limit_is_a_violation() -> None:
    # fault 18
    ours = link(Role.SUPERVISOR, limit_bytes=100)
    with pytest.raises(ProtocolViolation, match="longer than 100 bytes"):
        ours.receive(b"x" * 101)


def test_a_payload_is_bytes_that_nobody_decodes() -> None:
    ours, theirs = joined(Role.WORKER)
    payload = b'not even {json, but one line'
    [message] = theirs.receive(ours.send("run", fields_of("run"), payload))
    assert message.payload == payload


@pytest.mark.parametrize("most", [1, 2, 4, 5, 100])
def test_of_what_has_come_as_much_is_told_as_was_asked_for(most: int) -> None:
    said, messages = talk()
    ours = link(Role.SUPERVISOR)
    told = [ours.receive(said, most)]
    while ours.behind:
        told.append(ours.receive(b"", most))
    assert [len(some) for some in told[:-1]] == [most] * (len(told) - 1) and 0 < len(told[-1]) <= most
    assert [message for some in told for message in some] == messages


def test_what_comes_meanwhile_is_told_after_what_waits() -> None:
    said, messages = talk()
    ours = link(Role.SUPERVISOR)
    told = ours.receive(said[:-1], 2)
    told += ours.receive(said[-1:], 100)
    assert told == messages and not ours.behind


def talk() -> tuple[bytes, list[Message]]:
    """Everything a worker may say in one life, and the messages it makes."""
    ours, theirs = link(Role.SUPERVISOR), link(Role.WORKER)
    said = b""
    for type, payload in (("hello", b""), ("log", b""), ("ready", b""), ("output", b'"a piece"'), ("log", b""),
                          ("ended", b'{"x": "\xc3\xa9"}')):
        fields = fields_of(type)
        if type == "hello":
            fields["role"] = "worker"
        said += theirs.send(type, fields, payload)
    return said, ours.receive(said)


def test_a_conversation_may_be_cut_at_every_byte() -> None:
    said, messages = talk()
    assert [message.type for message in messages] == ["hello", "log", "ready", "output", "log", "ended"]
    for cut in range(len(said) + 1):
        ours = link(Role.SUPERVISOR)
        assert ours.receive(said[:cut]) + ours.receive(said[cut:]) == messages


def test_a_conversation_may_come_byte_by_byte() -> None:
    said, messages = talk()
    ours = link(Role.SUPERVISOR)
    assert [message for byte in said for message in ours.receive(bytes([byte]))] == messages


@given(st.binary(max_size=200))
def test_random_bytes_raise_nothing_but_violations(data: bytes) -> None:
    # fault 17
    for ours in (link(Role.SUPERVISOR), joined(Role.WORKER)[0], joined(Role.TEMPLATE)[0], joined(Role.WORKER)[1]):
        try:
            ours.receive(data)
        except ProtocolViolation:
            pass


def test_each_state_of_a_run_has_codes_that_exist() -> None:
    from orpheusd.errors import CODES

    assert {code for codes in ENDED_STATES.values() for code in codes} - set(CODES) == {""}
