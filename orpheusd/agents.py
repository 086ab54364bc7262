"""The agent.yaml model: what an agent may set, the bounds, the defaults, and what is said when it is wrong.

`docs/agent-yaml.md` is its prose, and a test holds its table equal to this model. This file reads no disk and
no environment: the text comes in, a `Manifest` or an `OrpheusError` that lists every mistake goes out.
"""

import keyword
import re
from collections.abc import Mapping
from typing import Annotated, Any, Literal, Self

from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, Field, ValidationError, model_validator
from pydantic_core import PydanticCustomError

from orpheusd.deploy.problems import explain, private_keys, refusal
from orpheusd.deploy.yamldoc import NAME_TO_SHOW, Document, Place, Problem, Unreadable, read_document, shown
from orpheusd.errors import OrpheusError
from orpheusd.operations import AGENT_NAME, SESSION_HEADER

#: A week: longer than any run or wait that is still meant to end.
LONGEST_S = 7 * 24 * 3600

#: A year: longer than any session's memory is worth the daemon's.
LONGEST_TTL_S = 366 * 24 * 3600

ENV_NAME = re.compile(r"[A-Za-z_][A-Za-z0-9_]{0,127}", re.ASCII)

#: The kernel's own limit for one variable is 128 KiB; this leaves room for many.
ENV_VALUE_LIMIT_BYTES = 32 * 1024
ENV_LIMIT = 256

#: Variables that the runtime sets itself, or that are read before an agent's own could be in place.
RESERVED_ENV = re.compile(r"ORPHEUS_.*|WORKSPACE_DIR|PATH|PYTHONPATH|PYTHONHOME|LD_.*", re.ASCII)

_NAME_RULE = "1 to 63 of a-z, 0-9 and -, starting with a letter or digit"
_MODULE_RULE = "a Python module such as agent, agent.py or package.agent"
_DURATION = re.compile(r"([0-9]+(?:\.[0-9]+)?)\s*(ms|s|m|h|d)", re.ASCII)
_HEADER_RULE = "a header name that starts with X- or ends with -Id"
#: Headers with a meaning of their own, standard or ours.
_HEADERS_TAKEN = re.compile(r"content-.*|last-event-id|x-forwarded-.*|x-orpheus-.*|x-session-(?!id$).*", re.ASCII)
_ENV_RULE = "a list of NAME and NAME=value, or a mapping of NAME to a value or to nothing"
#: Keys that may stand without a value, as a heading whose lines were all removed.
_SECTIONS = ("scaling", "session", "deploy", "recycle", "workspace", "env", "telemetry")
_UNIT_S = {"ms": 0.001, "s": 1, "m": 60, "h": 3600, "d": 86400}


def parse_manifest(text: str, source: str = "agent.yaml") -> "Manifest":
    """The manifest in `text`.

    Raises OrpheusError(invalid-request) whose `details["problems"]` lists every mistake in the order of the
    file, each as {"line", "field", "found", "allowed", "message"}.
    """
    try:
        document = read_document(text, private_keys(Manifest))
    except Unreadable as error:
        raise refusal(source, [error.problem]) from None
    problems = document.problems
    data = {key: value for key, value in document.data.items() if value is not None or key not in _SECTIONS}
    if "env" in data:
        data["env"] = _plain_env(data["env"], document)
    if isinstance(data.get("telemetry"), dict):
        data["telemetry"] = _plain_telemetry(data["telemetry"], document)
    try:
        manifest = Manifest.model_validate(data)
    except ValidationError as error:
        told = {problem.field for problem in problems}
        found = [explain(each, Manifest, document) for each in error.errors(include_url=False)]
        problems = [*problems, *(problem for problem in found if problem.field not in told)]
        raise refusal(source, problems) from None
    if problems:
        raise refusal(source, problems)
    return manifest


def _key(default: Any, meaning: str, allowed: str = "", shown: str = "", private: bool = False, **bounds: Any) -> Any:
    """A setting. `allowed` and `shown` replace the words made from its type, bounds and default.

    With `private` its values are kept out of errors.
    """
    return Field(default, description=meaning, json_schema_extra={
        "allowed": allowed, "shown": shown, "private": "yes" if private else ""}, **bounds)


def _seconds(value: Any) -> Any:
    if not isinstance(value, str):
        return value
    match = _DURATION.fullmatch(value.strip())
    if match is None:
        raise ValueError(f"must be a duration such as 90s, 15m, 24h or 7d, or a number of seconds, not {shown(value)}")
    return float(match[1]) * _UNIT_S[match[2]]


def _agent_name(value: str) -> str:
    if not AGENT_NAME.fullmatch(value):
        near = re.sub(r"[^a-z0-9]+", "-", value.lower()).strip("-")[:63]
        hint = f"; `{near}` would do" if near else ""
        raise ValueError(f"must be {_NAME_RULE}, not {shown(value)}{hint}")
    return value


def _module(value: str) -> str:
    if "/" in value:
        near = value.removesuffix(".py").strip("./").replace("/", ".")
        raise ValueError(f"must be the name of a module, not a path; write `{near}`")
    if not all(_identifier(part) for part in value.removesuffix(".py").split(".")):
        raise ValueError(f"must be {_MODULE_RULE}, not {shown(value)}")
    return value


def _entrypoint(value: str) -> str:
    if not _identifier(value):
        raise ValueError(f"must be the name of a function in the module, not {shown(value)}")
    return value


def _identifier(word: str) -> bool:
    return word.isidentifier() and not keyword.iskeyword(word) and len(word) <= 128


def _session_header(value: str) -> str:
    name = value.lower()
    if not SESSION_HEADER.fullmatch(name):
        raise ValueError(f"must be {_HEADER_RULE}, not {shown(value)}")
    if _HEADERS_TAKEN.fullmatch(name):
        raise ValueError(f"must be a header of the callers' own, not {shown(value)}")
    return value


def _env_name(name: str) -> str:
    if not ENV_NAME.fullmatch(name):
        raise ValueError("must be named with letters, digits and _, not starting with a digit")
    if RESERVED_ENV.fullmatch(name):
        raise ValueError("is the runtime's own; choose another name")
    return name


def _env_value(value: str) -> str:
    try:
        fits = "\0" not in value and len(value.encode()) <= ENV_VALUE_LIMIT_BYTES
    except UnicodeEncodeError:  # half a character (a lone surrogate), which YAML can write and UTF-8 cannot
        fits = False
    if not fits:
        raise ValueError(f"must be text of at most {ENV_VALUE_LIMIT_BYTES} bytes as UTF-8, with no NUL")
    return value


class _Settings(BaseModel):
    model_config = ConfigDict(strict=True, extra="forbid", frozen=True, allow_inf_nan=False)


class Scaling(_Settings):
    """How many workers an agent has, and how long runs may wait for one."""

    min_workers: int = _key(1, "workers kept even when idle; 0 scales to zero", ge=0, le=1000)
    max_workers: int = _key(10, "never more workers than this", ge=1, le=1000)
    queue_size: int = _key(200, "runs that may wait; more are refused with 503", ge=1, le=1_000_000)
    scale_up_threshold: float = _key(
        1.0, "runs per worker, going on or waiting, above which one is added", gt=0, le=1000)
    scale_down_threshold: float = _key(
        0.5, "runs per worker below which one is taken away; less than `scale_up_threshold`", ge=0, le=1000)
    idle_timeout_seconds: float = _key(
        300.0, "seconds below `scale_down_threshold` before a worker is taken away", ge=0, le=LONGEST_S)
    queue_timeout_seconds: float = _key(300.0, "seconds a run may wait for a worker", gt=0, le=LONGEST_S)

    @model_validator(mode="after")
    def _in_order(self) -> Self:
        if self.min_workers > self.max_workers:
            raise PydanticCustomError(
                "rule", "must be at least `scaling.min_workers` ({low}), not {high}",
                {"field": "max_workers", "low": self.min_workers, "high": self.max_workers})
        if self.scale_down_threshold >= self.scale_up_threshold:
            raise PydanticCustomError(
                "rule", "must be less than `scaling.scale_up_threshold` ({high}), not {low}",
                {"field": "scale_down_threshold", "low": self.scale_down_threshold, "high": self.scale_up_threshold})
        return self


class Session(_Settings):
    """How runs that bear a session id are placed, and how long a session is remembered."""

    affinity: Literal["soft", "strict"] = _key("soft", "whether a run may leave its session's busy worker")
    patience_ms: int = _key(100, "milliseconds a soft run waits for its session's worker", ge=0, le=3_600_000)
    overlap: Literal["allow", "queue", "reject", "interrupt"] = _key(
        "allow", "what happens when the session already has a run")
    ttl: Annotated[float, BeforeValidator(_seconds)] = _key(
        86400.0, "how long a session without a run is remembered",
        "a duration such as 90s, 15m, 24h or 7d, or a number of seconds, up to 366d", "24h", gt=0, le=LONGEST_TTL_S)
    max: int = _key(100_000, "sessions remembered; beyond it the least recently used ends", ge=1, le=10_000_000)
    queue_size: int = _key(32, "runs of one session that may wait; more are refused with 429", ge=1, le=100_000)
    header: Annotated[str, AfterValidator(_session_header)] | None = _key(
        None, "an HTTP header that bears the session id when `X-Session-ID` does not", _HEADER_RULE)


class Workspace(_Settings):
    """What the agent may keep in its workspace."""

    max_mb: int | None = _key(None, "MB that the workspace may hold; while it holds more, runs are refused",
                              "a whole number from 1 to 1048576", ge=1, le=1_048_576)


class Deploy(_Settings):
    """How a newer version takes the place of this agent's workers."""

    drain_seconds: float = _key(
        300.0, "seconds without a run after which an older version's worker gives up its sessions; 0: at once", ge=0,
        le=LONGEST_S)


class Recycle(_Settings):
    """When a worker is replaced by a new one though it works: for agents that leak."""

    max_runs: int | None = _key(None, "runs after which a worker is replaced", "a whole number from 1 to 1000000000",
                                ge=1, le=1_000_000_000)
    memory_mb: int | None = _key(None, "MB of resident memory above which a worker is replaced; less than `memory`",
                                 "a whole number from 1 to 1048576", ge=1, le=1_048_576)


Label = Annotated[str, Field(max_length=256)]


class Telemetry(_Settings):
    """What is added to the agent's metrics."""

    labels: dict[Annotated[str, Field(pattern=r"^[A-Za-z_][A-Za-z0-9_]{0,62}$")], Label] = _key(
        {}, "labels added to this agent's metrics",
        "at most 32 names of letters, digits and _, each with a text of at most 256 characters", max_length=32)


EnvName = Annotated[str, AfterValidator(_env_name)]
EnvValue = Annotated[str, AfterValidator(_env_value)]


class Manifest(_Settings):
    """A checked agent.yaml. Durations are seconds, `memory` is MB. Invariant: it can be deployed as it stands."""

    name: Annotated[str, AfterValidator(_agent_name)] = Field(
        description="the agent's name", json_schema_extra={"allowed": _NAME_RULE})
    runtime: Literal["python3"] = Field(description="what runs the agent")
    module: Annotated[str, AfterValidator(_module)] = _key(
        "agent", "the module that holds the handler", _MODULE_RULE)
    entrypoint: Annotated[str, AfterValidator(_entrypoint)] = _key(
        "handler", "the function that is called for each run", "the name of a function")
    memory: int = _key(512, "MB of memory a worker may use; one that uses more is killed", ge=16, le=1_048_576)
    timeout: float = _key(300.0, "seconds a run may take", gt=0, le=LONGEST_S)
    concurrency: int = _key(1, "runs a worker does at a time; more than 1 needs an async handler", ge=1, le=1000)
    preload: bool = _key(False, "import the module once, before workers are forked")
    scaling: Scaling = Field(default_factory=Scaling)
    session: Session = Field(default_factory=Session)
    deploy: Deploy = Field(default_factory=Deploy)
    recycle: Recycle = Field(default_factory=Recycle)
    workspace: Workspace = Field(default_factory=Workspace)
    env: dict[EnvName, EnvValue | None] = _key(
        {}, "environment variables of the agent", f"{_ENV_RULE}; at most {ENV_LIMIT}", private=True,
        max_length=ENV_LIMIT)
    network: bool = _key(True, "whether the agent has the host's network, the HTTP door included")
    telemetry: Telemetry = Field(default_factory=Telemetry)
    engine: str | None = _key(None, "accepted and ignored: no model server is started", "text", max_length=256)
    model: str | None = _key(None, "accepted and ignored: no model server is started", "text", max_length=256)

    @model_validator(mode="after")
    def _recycled_before_it_is_killed(self) -> Self:
        if self.recycle.memory_mb is not None and self.recycle.memory_mb >= self.memory:
            raise PydanticCustomError(
                "rule", "must be less than `memory` ({most}), not {found}",
                {"field": "recycle.memory_mb", "most": self.memory, "found": self.recycle.memory_mb})
        return self

    @property
    def module_name(self) -> str:
        """What to import: `agent.py` and `agent` are both `agent`."""
        return self.module.removesuffix(".py")

    def env_needed(self) -> list[str]:
        """The variables whose values the deployer must give."""
        return [name for name, value in self.env.items() if value is None]

    def resolved_env(self, given: Mapping[str, str]) -> dict[str, str]:
        """Every variable with its value. `given` must hold exactly the needed ones; values never get into errors."""
        needed = self.env_needed()
        missing = [name for name in needed if name not in given]
        if missing:
            sets = " ".join(f"{name}=…" for name in missing)
            raise OrpheusError(
                "invalid-request", f"{self.name} needs a value for {', '.join(missing)}: agent.yaml names "
                f"{'them' if len(missing) > 1 else 'it'} under env without one; set {sets} in the environment of the "
                "deploy command", {"missing": missing})
        unknown = [name for name in given if name not in needed]
        if unknown:
            known = ", ".join(needed) or "none"
            named = sorted({name if NAME_TO_SHOW.fullmatch(name) else "what is no name" for name in unknown})
            raise OrpheusError(
                "invalid-request", f"{self.name} does not take a value for {', '.join(named)[:200]}; the "
                f"variables that agent.yaml leaves to the deployer are: {known}")
        for name in needed:
            try:
                _env_value(given[name])
            except ValueError as error:
                raise OrpheusError("invalid-request", f"the value of {name} {error}") from None
        return {name: given[name] if value is None else value for name, value in self.env.items()}

    def settings(self) -> dict[str, Any]:
        """Every setting, JSON-ready, for listings: of the environment only the names."""
        plain = self.model_dump(mode="json", exclude={"env", "engine", "model"})
        return {**plain, "env": list(self.env)}

    def warnings(self) -> list[str]:
        """What is accepted here and does nothing."""
        return [f"agent.yaml: `{name}` is ignored: Orpheus starts no model server; run it beside, and tell the agent "
                "where through env (for example MODEL_URL)" for name in ("engine", "model") if getattr(self, name)]


def _plain_env(value: Any, document: Document) -> Any:
    """`env` in any of its forms as a mapping. What cannot be read becomes a problem; values are never shown."""
    pairs: list[tuple[Place, str, Any]]
    if isinstance(value, dict):
        pairs = [(("env", name), name, _as_written(inner, ("env", name), document)) for name, inner in value.items()]
    elif isinstance(value, list):
        pairs = [_env_item(("env", index), _as_written(item, ("env", index), document))
                 for index, item in enumerate(value)]
    else:
        document.problems.append(Problem(
            document.line(("env",)), "env", "another thing", _ENV_RULE, f"`env` must be {_ENV_RULE}"))
        return {}
    plain: dict[str, str | None] = {}
    for place, name, given in pairs:
        line = document.line(place)
        if not isinstance(given, str | None) or not NAME_TO_SHOW.fullmatch(name):
            what = f"`env.{name}` must be a text" if NAME_TO_SHOW.fullmatch(name) else (
                f"item {place[1] + 1} of `env` must be NAME or NAME=value" if isinstance(place[1], int) else
                "a name under `env` must be of letters, digits and _")
            document.problems.append(Problem(line, "env", "another thing", "NAME, NAME=value or NAME: value", what))
        elif name in plain:
            document.problems.append(Problem(
                line, f"env.{name}", "given twice", "each name once", f"`env.{name}` is given twice; keep one"))
        else:
            document.lines["env", name] = line
            plain[name] = given
    return plain


def _env_item(place: Place, item: Any) -> tuple[Place, str, Any]:
    if not isinstance(item, str):
        return place, "", None
    name, equals, given = item.partition("=")
    return place, name.strip(), given if equals else None


def _plain_telemetry(telemetry: dict[str, Any], document: Document) -> dict[str, Any]:
    labels = telemetry.get("labels")
    if not isinstance(labels, dict):
        return {key: value for key, value in telemetry.items() if key != "labels" or value is not None}
    return {**telemetry, "labels": {
        key: _as_written(value, ("telemetry", "labels", key), document) for key, value in labels.items()}}


def _as_written(value: Any, place: Place, document: Document) -> Any:
    """Numbers and switches as the text they were written as: `on`, 8080 and 1.10 lose nothing."""
    return document.written.get(place, value) if isinstance(value, bool | int | float) else value
