"""agent.yaml: what is accepted, what every mistake says, and that the reference page says the same."""

import json
import re
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from orpheusd.agents import Manifest, parse_manifest
from orpheusd.deploy.problems import rows
from orpheusd.deploy.yamldoc import LIMIT_BYTES
from orpheusd.errors import OrpheusError

DOCS = Path(__file__).resolve().parents[2] / "docs/agent-yaml.md"
BASE = "name: a\nruntime: python3\n"


def refused(text: str) -> OrpheusError:
    with pytest.raises(OrpheusError) as caught:
        parse_manifest(text)
    assert caught.value.code == "invalid-request"
    for problem in caught.value.details["problems"]:
        assert set(problem) == {"line", "field", "found", "allowed", "message"}
        assert problem["line"] >= 1
        assert problem["message"] in caught.value.message
    json.dumps(caught.value.details)
    return caught.value


def test_two_keys_are_enough() -> None:
    manifest = parse_manifest(BASE)
    assert (manifest.module_name, manifest.entrypoint) == ("agent", "handler")
    assert (manifest.memory, manifest.timeout) == (512, 300)
    assert (manifest.scaling.min_workers, manifest.scaling.max_workers) == (1, 10)
    assert manifest.session.ttl == 86400
    assert manifest.env == {} and manifest.network and not manifest.preload


def test_a_manifest_survives_its_own_json() -> None:
    manifest = parse_manifest(
        BASE + "env: [A, B=1]\nsession: {ttl: 15m}\ntelemetry: {labels: {team: x}}\nengine: ollama\n")
    assert Manifest.model_validate_json(manifest.model_dump_json()) == manifest
    assert Manifest.model_validate(json.loads(manifest.model_dump_json())) == manifest


def test_a_manifest_cannot_be_changed() -> None:
    with pytest.raises(Exception, match="frozen"):
        parse_manifest(BASE).memory = 3  # type: ignore[misc]


@pytest.mark.parametrize(("written", "seconds"), [
    ("24h", 86400), ("90s", 90), ("15m", 900), ("7d", 604800), ("60", 60), ("1.5h", 5400), ("500ms", 0.5),
    ('"2 h"', 7200),
])
def test_durations(written: str, seconds: float) -> None:
    assert parse_manifest(f"{BASE}session: {{ttl: {written}}}").session.ttl == seconds


@pytest.mark.parametrize(
    "name", ["X-Conversation-Id", "x-thread", "Conversation-ID", "Mcp-Session-Id", "X-Session-ID"])
def test_headers_that_may_bear_a_session_id(name: str) -> None:
    assert parse_manifest(f"{BASE}session: {{header: {name}}}").session.header == name
    assert parse_manifest(BASE).session.header is None


@pytest.mark.parametrize(("written", "name"), [
    ("agent", "agent"), ("agent.py", "agent"), ("pkg.agent", "pkg.agent"), ("pkg.agent.py", "pkg.agent"),
])
def test_modules(written: str, name: str) -> None:
    assert parse_manifest(f"{BASE}module: {written}").module_name == name


@pytest.mark.parametrize("empty", ["scaling:", "session:", "env:", "telemetry:", "telemetry: {labels: }"])
def test_a_heading_without_lines_is_as_if_it_were_not_there(empty: str) -> None:
    assert parse_manifest(f"{BASE}{empty}\n") == parse_manifest(BASE)


@pytest.mark.parametrize("text", [
    "env: [A, MODE=prod, EMPTY=, EQ=a=b]",
    "env:\n  - A\n  - MODE=prod\n  - EMPTY=\n  - EQ=a=b",
    'env: {A: , MODE: prod, EMPTY: "", EQ: a=b}',
])
def test_the_forms_of_env(text: str) -> None:
    manifest = parse_manifest(BASE + text)
    assert manifest.env == {"A": None, "MODE": "prod", "EMPTY": "", "EQ": "a=b"}
    assert manifest.env_needed() == ["A"]
    assert manifest.resolved_env({"A": "x"}) == {"A": "x", "MODE": "prod", "EMPTY": "", "EQ": "a=b"}


def test_what_yaml_would_change_reaches_the_agent_as_written() -> None:
    text = BASE + "env: {A: on, B: 010, C: 1.10, D: 1_000, E: 2024-01-01, F: 12:30, NO: no}"
    assert parse_manifest(text).env == {
        "A": "on", "B": "010", "C": "1.10", "D": "1_000", "E": "2024-01-01", "F": "12:30", "NO": "no"}
    assert parse_manifest(BASE + "telemetry: {labels: {on: 1, v: 1.10}}").telemetry.labels == {"on": "1", "v": "1.10"}


def test_a_missing_value_is_named_and_how_to_give_it() -> None:
    manifest = parse_manifest(BASE + "env: [KEY, OTHER, MODE=prod]")
    with pytest.raises(OrpheusError, match=r"needs a value for KEY, OTHER.*KEY=… OTHER=…"):
        manifest.resolved_env({})
    with pytest.raises(OrpheusError, match=r"does not take a value for MODE, X; .* are: KEY, OTHER"):
        manifest.resolved_env({"KEY": "1", "OTHER": "2", "X": "3", "MODE": "dev"})
    with pytest.raises(OrpheusError, match=r"the value of KEY must be text .* with no NUL") as caught:
        manifest.resolved_env({"KEY": "planted\0", "OTHER": "2"})
    assert "planted" not in str(caught.value)


def test_settings_for_listings_hold_no_value_of_env() -> None:
    manifest = parse_manifest(BASE + "env: [KEY, TOKEN=planted]")
    assert manifest.settings()["env"] == ["KEY", "TOKEN"]
    assert "planted" not in json.dumps(manifest.settings())


def test_ignored_keys_are_accepted_and_said() -> None:
    manifest = parse_manifest(BASE + "engine: ollama\nmodel: mistral\n")
    assert [warning.split("`")[1] for warning in manifest.warnings()] == ["engine", "model"]
    assert parse_manifest(BASE).warnings() == []


#: agent.yaml without name and runtime when it begins with "=", the line the mistake is on, words of the message.
MISTAKES = [
    ("=", 1, "the file is empty"),
    ("=\n# nothing\n", 1, "the file is empty"),
    ("=~", 1, "the file is empty"),
    ("=- a\n- b", 1, "does not hold `key: value` lines"),
    ("=hello", 1, "does not hold `key: value` lines"),
    ("=name: [", 1, "is not YAML"),
    ("=name: a\n\tmodule: b", 2, "indent with spaces, not tabs"),
    ("=name: a\n---\nname: b", 2, "more than one document"),
    ("=name: a\x07b", 1, "is not text"),
    ('=name: "\\UFFFFFFFF"', 1, "the number of a character, or of a YAML version, that does not exist"),
    ('=runtime: python3\nname: "\\U00110000"', 2, "the number of a character"),
    (f"=%YAML 1.{'1' * 5000}\n---\nname: a", 1, "of a YAML version, that does not exist"),
    ("=a: &x 1\nb: *x", 2, "aliases (values that begin with *) are not allowed"),
    (f"=a: {'[' * 30}", 1, "nested more than 16 deep"),
    (f"=name: {'a' * LIMIT_BYTES}", 1, "is too long"),
    ("name: b", 3, "`name` is given twice, first on line 1"),
    ("scaling:\n  max_workers: 1\n  max_workers: 2", 5, "`scaling.max_workers` is given twice, first on line 4"),
    ("memory: !!python/object:os.system 1", 3, "write a plain value without a tag"),
    ("? [a]\n: b", 3, "a key must be a word"),
    ("=runtime: python3", 1, "`name` is required: 1 to 63 of"),
    ("=name: a", 1, "`runtime` is required: python3"),
    ("=name: no\nruntime: python3", 1,
     'not no (which YAML reads as false); if you mean the text, write it in quotes: "no"'),
    ("=name: 12\nruntime: python3", 1, "and -, starting with a letter or digit, not 12"),
    ("=name: My_Agent\nruntime: python3", 1, "`my-agent` would do"),
    ("=name: -a\nruntime: python3", 1, "`name` must be 1 to 63"),
    (f"=name: {'a' * 64}\nruntime: python3", 1, "`name` must be 1 to 63"),
    ("=name:\nruntime: python3", 1, "starting with a letter or digit, not nothing"),
    ("=name: a\nruntime: nodejs20", 2, '`runtime` must be python3, not "nodejs20"'),
    ("memory: 512MB", 3, '`memory` must be a whole number from 16 to 1048576, not "512MB"'),
    ("memory: 1.5", 3, "must be a whole number from 16 to 1048576, not 1.5"),
    ("memory: 15", 3, "not 15"),
    ("memory: 010000", 3, 'not "010000"'),
    ("memory: 1:30", 3, 'not "1:30"'),
    (f"memory: {'9' * 5000}", 3, "`memory` must be a whole number"),
    ("memory: true", 3, "`memory` must be a whole number from 16 to 1048576, not true"),
    ("timeout: 0", 3, "`timeout` must be a number above 0, at most 604800, not 0"),
    ("timeout: .inf", 3, "not .inf"),
    ("timeout: .nan", 3, "not .nan"),
    ("concurrency: 0", 3, "`concurrency` must be a whole number from 1 to 1000, not 0"),
    ("preload: 1", 3, "`preload` must be true or false, not 1"),
    ('preload: "yes"', 3, '`preload` must be true or false, not "yes"'),
    ("network: maybe", 3, '`network` must be true or false, not "maybe"'),
    ("module: src/agent.py", 3, "write `src.agent`"),
    ("module: my-agent", 3, "`module` must be a Python module"),
    ("module: class", 3, "`module` must be a Python module"),
    ("entrypoint: a.b", 3, "`entrypoint` must be the name of a function"),
    ("entrypoint: on", 3, "which YAML reads as true"),
    ("scaling: 3", 3, "`scaling` must be a mapping of keys to values, not 3"),
    ("scaling:\n  min_workers: 5\n  max_workers: 2", 5,
     "`scaling.max_workers` must be at least `scaling.min_workers` (5), not 2"),
    ("scaling:\n  min_workers: 11", 3, "must be at least `scaling.min_workers` (11), not 10"),
    ("scaling: {max_workers: 0}", 3, "must be a whole number from 1 to 1000, not 0"),
    ("scaling: {scale_up_threshold: 0.5}", 3, "`scaling.scale_down_threshold` must be less than"),
    ("memory: 100\nrecycle:\n  memory_mb: 100", 5, "`recycle.memory_mb` must be less than `memory` (100), not 100"),
    ("recycle: {memory_mb: 512}", 3, "`recycle.memory_mb` must be less than `memory` (512), not 512"),
    ("recycle: {max_runs: 0}", 3, "must be a whole number from 1 to 1000000000"),
    ("session: {affinity: hard}", 3, '`session.affinity` must be one of soft, strict, not "hard"'),
    ("session: {overlap: on}", 3, "one of allow, queue, reject, interrupt, not on (which YAML reads as true)"),
    ("session: {ttl: 24x}", 3,
     '`session.ttl` must be a duration such as 90s, 15m, 24h or 7d, or a number of seconds, not "24x"'),
    ("session: {header: Conversation}", 3, "`session.header` must be a header name that starts with X- or ends with"),
    ('session: {header: "X-A B"}', 3, "`session.header` must be a header name"),
    ('session: {header: "X-A:"}', 3, "`session.header` must be a header name"),
    ("session: {header: 3}", 3, "`session.header` must be a header name"),
    ("session: {header: X-}", 3, "`session.header` must be a header name"),
    (f"session: {{header: X-{'a' * 62}}}", 3, "`session.header` must be a header name"),
    ("session: {header: Authorization}", 3, "`session.header` must be a header name"),
    ("session: {header: Content-ID}", 3, "`session.header` must be a header of the callers' own"),
    ("session: {header: X-Session-Overlap}", 3, "`session.header` must be a header of the callers' own"),
    ("session: {header: X-Forwarded-For}", 3, "`session.header` must be a header of the callers' own"),
    ("session: {ttl: 0s}", 3, "`session.ttl` must be a duration"),
    ("session: {ttl: 367d}", 3, "`session.ttl` must be a duration"),
    ("telemetry: {labels: {a: [1]}}", 3, "`telemetry.labels.a` must be"),
    ("telemetry: {labels: {9a: x}}", 3, "`telemetry.labels.9a` must be"),
    ("memry: 3", 3, "`memry` is not a known key; did you mean `memory`?"),
    ("min-workers: 3", 3, "did you mean `scaling.min_workers`?"),
    ("scaling: {max_worker: 3}", 3, "`scaling.max_worker` is not a known key; did you mean `scaling.max_workers`?"),
    ("scaling: {ttl: 3}", 3, "did you mean `session.ttl`?"),
    ("zzz: 3", 3, "`zzz` is not a known key; known here are concurrency, "),
    ("env: A=planted", 3, "`env` must be a list of NAME and NAME=value"),
    ("env: [A, A=planted]", 3, "`env.A` is given twice"),
    ("env:\n  - A\n  - B: planted", 5, "item 2 of `env` must be NAME or NAME=value"),
    ("env: ['KEY:planted']", 3, "item 1 of `env` must be NAME or NAME=value"),
    ("env: {KEY=planted}", 3, "a name under `env` must be of letters, digits and _"),
    ("env: {A: [planted]}", 3, "`env.A` must be a text"),
    ("env: [9A]", 3, "`env.9A` must be named with letters, digits and _"),
    ("env:\n  - OK=1\n  - ORPHEUS_X=planted", 5, "`env.ORPHEUS_X` is the runtime's own"),
    ("env: {PATH: planted}", 3, "`env.PATH` is the runtime's own"),
    ("env: {LD_PRELOAD: planted}", 3, "`env.LD_PRELOAD` is the runtime's own"),
    ("env: {WORKSPACE_DIR: planted}", 3, "`env.WORKSPACE_DIR` is the runtime's own"),
    ('env: {A: "planted\\0"}', 3, "`env.A` must be text of at most 32768 bytes as UTF-8, with no NUL"),
    ('env: {A: "planted\\ud800"}', 3, "`env.A` must be text of at most 32768 bytes as UTF-8"),
    ('env: ["A=planted\\udfff"]', 3, "`env.A` must be text of at most 32768 bytes as UTF-8"),
    # values that begin as something else of YAML begins
    ("env:\n  A: !planted", 4, "`env.A` has a tag (it begins with !)"),
    ("env: !planted", 3, "`env` has a tag"),
    ("env:\n  A: !planted!x y", 4, "found undefined tag handle"),
    ("env:\n  A: *planted", 4, "aliases (values that begin with *) are not allowed"),
    ("env:\n  A: &planted x\n  B: &planted y", 5, "found duplicate anchor"),
    ("env:\n  A: {planted: 1, planted: 2}", 4, "`env.A` is given twice"),
    ("env:\n  A: [{planted: !x y}]", 4, "`env.A` has a tag"),
    ("env:\n  'A:planted': x\n  'A:planted': y", 5, "`env` is given twice"),
    (f"env: [{', '.join(f'A{number}' for number in range(257))}]", 3, "`env` must hold at most 256, not 257"),
]


@pytest.mark.parametrize(("text", "line", "words"), MISTAKES, ids=[repr(row[0][:40]) for row in MISTAKES])
def test_a_mistake_is_named_with_its_line(text: str, line: int, words: str) -> None:
    error = refused(text[1:] if text.startswith("=") else BASE + text)
    found = [problem for problem in error.details["problems"] if words in problem["message"]]
    assert found, error.message
    assert found[0]["line"] == line
    assert "planted" not in error.message + json.dumps(error.details)


def test_every_mistake_at_once_in_the_order_of_the_file() -> None:
    error = refused(
        "runtime: python3\nmemory: lots\nscaling:\n  min_workers: -1\n  oops: 1\nname: A B\nenv: [A, A, PATH]\n")
    assert [problem["line"] for problem in error.details["problems"]] == [2, 4, 5, 6, 7, 7]
    assert error.message.startswith("agent.yaml has 6 mistakes:\n  line 2: ")
    assert refused("runtime: python3").message.startswith("agent.yaml, line 1: ")


def test_a_file_of_nothing_but_mistakes_is_cut() -> None:
    error = refused("\n".join(f"k{number}: 1" for number in range(200)))
    assert len(error.details["problems"]) == 50
    assert "agent.yaml has 202 mistakes:" in error.message and "and 152 more" in error.message


def test_messages_are_printable_and_bounded() -> None:
    error = refused(f'name: "\\x1b[31m\\u202e"\nruntime: "{"x" * 5000}"\n"\\x1b]0;": 1\n')
    assert "\x1b" not in error.message and "\u202e" not in error.message
    assert len(error.message) < 1500


@given(st.text(max_size=300))
def test_any_text_is_a_manifest_or_a_refusal(text: str) -> None:
    try:
        parse_manifest(text)
    except OrpheusError as error:
        assert error.details["problems"]


_VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner, max_size=3), max_leaves=5)


@given(st.dictionaries(st.sampled_from([*Manifest.model_fields, "other"]), _VALUES, max_size=6))
def test_any_mapping_is_a_manifest_or_a_refusal(data: dict[str, Any]) -> None:
    text = json.dumps({"name": "a", "runtime": "python3", **data})
    try:
        manifest = parse_manifest(text)
    except OrpheusError as error:
        assert error.details["problems"]
    else:
        assert Manifest.model_validate_json(manifest.model_dump_json()) == manifest


def test_the_reference_page_has_the_models_table() -> None:
    table = re.findall(r"^\| `(.*?)` \| (.*?) \| (.*?) \| (.*?) \|$", DOCS.read_text(), re.MULTILINE)
    assert table == [tuple(row) for row in rows(Manifest)]


def test_the_reference_pages_examples_hold() -> None:
    page = DOCS.read_text()
    whole = next(block for block in re.findall(r"```yaml\n(.*?)```", page, re.DOTALL) if "telemetry" in block)
    manifest = parse_manifest(whole)
    defaults = parse_manifest("name: my-agent\nruntime: python3\nenv: [OPENAI_API_KEY, MODE=prod]\n"
                              "telemetry: {labels: {team: platform}}\nsession: {header: X-Conversation-Id}\n"
                              "workspace: {max_mb: 1024}\nrecycle: {max_runs: 10000, memory_mb: 400}")
    assert manifest == defaults  # every other value shown is the default
    written = set(re.findall(r"^ *([a-z_]+):", whole, re.MULTILINE))
    leaves = {row.key.split(".")[-1] for row in rows(Manifest)} - {"engine", "model"}
    assert leaves <= written
    for block in re.findall(r"```yaml\n(env:.*?)```", page, re.DOTALL):
        assert "OPENAI_API_KEY" in parse_manifest(BASE + block).env_needed()
    told = re.search(r"```\n(agent.yaml has 3.*?)\n```", page, re.DOTALL)
    text = BASE + "min_worker: 1\nmemory: 512MB\nscaling:\n  max_workers: 2\n  min_workers: 4\n"
    assert told and told[1] == refused(text).message
