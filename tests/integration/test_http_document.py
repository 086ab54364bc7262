"""`/openapi.json` is true: schemathesis asks a real door what the document allows, and much that it does not."""

import json
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import NamedTuple

import pytest

from orpheusd.doors.token import make_token
from orpheusd.errors import OrpheusError
from orpheusd.operations import BY_NAME, OPERATIONS, Access, Operation
from tests.daemon import Daemon, bundle, environment, write_agent

HOOKS = Path(__file__).with_name("document_hooks.py")
ECHO = "def handler(input_data):\n    return {'got': input_data}\n"
#: Its runs go on until they are cancelled.
BUSY = "import time\ndef handler(input_data):\n    time.sleep(600)\n"
#: Of these, so many are there to be cancelled.
GOING_ON = 40

#: Longer than the longest form takes on a busy machine.
TIMEOUT_S = 800
ROUTED = [one for one in OPERATIONS if one.http]
CHANGES = [one for one in ROUTED if one.access is Access.ADMIN]
JSON = "application/json"
MEDIA_TYPES = {"metrics": "text/plain"}

#: All checks of schemathesis are made but these.
LEFT_OUT = {
    "object_level_authorization": "there are no users: who has the token has all rights, and reads need none",
}
#: What bad input is answered with. None of it is a 5xx, and 408, 413 and 431 are not what a schema can provoke.
REFUSED = ["400", "401", "403", "404", "405", "409", "415"]
#: What good input may be answered with: it names what is not there, or is in the way of what is.
ACCEPTED = ["2xx", "403", "404", "409", "429"]

SETTINGS = """
hooks = {hooks}
continue-on-failure = true
request-timeout = 60.0

[dictionaries]
agents.values = ["known"]
undeployed.values = ["fresh"]
sessions.values = ["s-1"]
ended.values = ["ended"]
runs.values = {runs}
going.values = {going}
versions.values = [1, 2]
prefer.values = ["respond-async"]
waits.values = [0, 0.1]

[parameters]
"path.agent" = {{ dictionary = "agents", probability = 0.7 }}
"path.session_id" = {{ dictionary = "sessions", probability = 0.7 }}
"path.run_id" = {{ dictionary = "runs", probability = 0.7 }}
"query.version" = {{ dictionary = "versions", probability = 0.5 }}
"query.wait" = {{ dictionary = "waits" }}
"header.Prefer" = {{ dictionary = "prefer", probability = 0.3 }}

[checks]
{left_out}
negative_data_rejection.expected-statuses = {refused}
positive_data_acceptance.expected-statuses = {accepted}

[warnings]
fail-on = ["missing_deserializer", "unresolvable_reference", "unsupported_regex", "dictionary_mismatch"]

# Timeouts of nanoseconds are allowed, and kept.
[[operations]]
include-operation-id = "run"
checks.not_a_server_error.expected-statuses = ["2xx", "4xx", "504"]
checks.positive_data_acceptance.expected-statuses = {accepted_run}
generation.max-examples = {runs_asked}

[[operations]]
include-operation-id = "run.cancel"
parameters."path.run_id" = {{ dictionary = "going", probability = 0.7 }}

[[operations]]
include-operation-id = "session.end"
parameters."path.session_id" = {{ dictionary = "ended", probability = 0.7 }}

[[operations]]
include-operation-id = "undeploy"
parameters."path.agent" = {{ dictionary = "undeployed", probability = 0.7 }}

# Whether bytes are a bundle, and which variables its agent wants, is beyond a schema.
[[operations]]
include-operation-id = "deploy"
checks.positive_data_acceptance.expected-statuses = {accepted_deploy}

# These take the time of starting processes.
[[operations]]
include-operation-id = ["deploy", "undeploy", "restart", "rollback", "reload"]
generation.max-examples = {changes}
"""


class Told(NamedTuple):
    """What a run of schemathesis said, and how often each operation got which answer."""

    text: str
    exit_code: int
    answers: dict[str, int]


def settings(run: str, going: list[str], examples: int) -> str:
    """With ids of what is there."""
    return SETTINGS.format(
        hooks=json.dumps(str(HOOKS)), runs=[run], going=going,
        left_out="\n".join(f"{name}.enabled = false" for name in LEFT_OUT), refused=REFUSED, accepted=ACCEPTED,
        accepted_run=[*ACCEPTED, "504"], accepted_deploy=[*ACCEPTED, "400"],
        runs_asked=max(40, examples), changes=max(2, examples // 10))


def ask(house: Daemon, folder: Path, token: str, examples: int, *flags: str) -> Told:
    """Everything schemathesis asks of the door, of `examples` requests an operation where it is free to choose."""
    for name, code in (("known", ECHO), ("known", ECHO), ("fresh", ECHO), ("busy", BUSY)):
        house.deploy(write_agent(folder / name, code, scaling={"max_workers": 1}))
    run = house.call("run", agent="known", input=1, session_id="s-1")["request_id"]
    going = [house.call("run", agent="busy", input=1, detach=True)["request_id"] for _ in range(GOING_ON)]
    (folder / "bundle").write_bytes(bundle(folder / "fresh", complete=True))
    config, tally = folder / "schemathesis.toml", folder / "tally"
    config.write_text(settings(run, going, examples))
    prepared = {"http": house.http, "token": token, "agent": "known", "session": "s-1", "run": run, "going": going,
                "bundle": str(folder / "bundle"), "tally": str(tally)}
    authorised = ["--header", f"Authorization: Bearer {token}"] if token else []
    done = subprocess.run(
        [Path(sys.executable).with_name("st"), "--no-color", "--config-file", config, "run", *authorised,
         f"--max-examples={examples}", *flags, f"{house.http}/openapi.json"],
        cwd=folder, env={**environment(), "TEST_HOUSE": json.dumps(prepared)}, capture_output=True, text=True,
        timeout=TIMEOUT_S, check=False)
    for each in going:
        with suppress(OrpheusError):
            house.call("run.cancel", run_id=each)
    said = done.stdout + done.stderr
    assert tally.exists(), said
    return Told(said, done.returncode, json.loads(tally.read_text()))


def check(house: Daemon, told: Told, *asked: Operation) -> None:
    """Nothing was found, and the good answers of `asked` were among what was looked at."""
    print(told.text, json.dumps(told.answers, indent=1), sep="\n")
    assert told.exit_code == 0
    assert {f"{one.name} 200 {MEDIA_TYPES.get(one.name, JSON)}" for one in asked} <= told.answers.keys()
    assert any(answer.startswith("another method 405") for answer in told.answers)
    assert " ERROR " not in house.log
    assert house.call("health")["status"] == "ok"


@pytest.fixture
def admin_house() -> Iterator[tuple[Daemon, str]]:
    """A daemon that serves changes, and its token."""
    house = Daemon("--http-admin")
    try:
        token = (make_token(house.state_dir)).read_text().strip()
        yield house.start(), token
    finally:
        house.close()


def test_the_document_is_true_of_everything(admin_house: tuple[Daemon, str], tmp_path: Path) -> None:
    """The same requests each time, so that what is found was brought by a change."""
    house, token = admin_house
    told = ask(house, tmp_path, token, 6, "--generation-deterministic")
    check(house, told, *ROUTED)
    assert {f"run 202 {JSON}", "run 200 text/event-stream", f"deploy 401 {JSON}"} <= told.answers.keys()


def test_the_document_is_true_of_changes_that_are_not_served(
        new_daemon: Callable[..., Daemon], tmp_path: Path) -> None:
    house = new_daemon()
    only = [f"--include-operation-id={one.name}" for one in CHANGES]
    told = ask(house, tmp_path, "", 6, "--generation-deterministic", *only)
    check(house, told)
    assert {answer.split()[-2] for answer in told.answers} == {"403", "405"}


def test_the_document_is_true_where_all_of_it_needs_the_token(tmp_path: Path) -> None:
    house = Daemon("--http-require-token")
    try:
        token = make_token(house.state_dir).read_text().strip()
        asked = [BY_NAME[name] for name in ("health", "run", "agent.list")]
        only = [f"--include-operation-id={one.name}" for one in asked]
        told = ask(house.start(), tmp_path, token, 6, "--generation-deterministic", *only)
        check(house, told, *asked)
        assert {f"{one.name} 401 {JSON}" for one in asked} <= told.answers.keys()
    finally:
        house.close()


@pytest.mark.slow
@pytest.mark.deadline(900)
def test_the_document_is_true_whatever_is_asked(admin_house: tuple[Daemon, str], tmp_path: Path) -> None:
    house, token = admin_house
    check(house, ask(house, tmp_path, token, 100), *ROUTED)


@pytest.mark.slow
@pytest.mark.deadline(900)
def test_the_document_is_true_without_changes_whatever_is_asked(
        new_daemon: Callable[..., Daemon], tmp_path: Path) -> None:
    house = new_daemon()
    check(house, ask(house, tmp_path, "", 100), *[one for one in ROUTED if one not in CHANGES])


def test_what_is_left_out_is_a_check(tmp_path: Path) -> None:
    """Of a check that has another name now, the settings would leave out nothing and say nothing."""
    program = Path(sys.executable).with_name("st")
    told = subprocess.run([program, "run", "--help"], cwd=tmp_path, env=environment(), capture_output=True, text=True,
                          timeout=60, check=True)
    assert all(name in told.stdout for name in LEFT_OUT)
