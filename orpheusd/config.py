"""The daemon's settings: defaults, then a TOML file, then `ORPHEUS_*` variables, then flags.

The only file that reads the daemon's environment. It decides where state and runtime directories are; it
creates nothing.
"""

import ipaddress
import math
import os
import re
import tomllib
from collections.abc import Collection, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, NamedTuple

from orpheusd import failpoints
from orpheusd.errors import OrpheusError
from orpheusd.failpoints import Trap
from orpheusd.runlog.settings import DURABILITIES

DEFAULT_FILE = Path("/etc/orpheus/orpheusd.toml")
ISOLATIONS = ("auto", "bwrap", "none")
LOG_LEVELS = ("debug", "info", "warning", "error")
LOG_FORMATS = ("text", "json")

#: Where the next image of a daemon that reloads finds what it is handed; see `orpheusd.handover`.
HANDOVER = "ORPHEUS_HANDOVER"


class FromSystemd(NamedTuple):
    """What systemd says to a service that it starts: the descriptors it listens on for us, where and how often it
    wants to hear of us, and, when the service has ended, how (sd_listen_fds(3), sd_notify(3), systemd.exec(5)); and
    at which socket it gives each template a unit of its own (our own, systemd/orpheus-agents.socket).
    """

    listen_fds: tuple[int, ...] = ()
    notify_socket: str | None = None
    watchdog_s: float | None = None
    service_result: str | None = None
    agents_socket: Path | None = None


@dataclass(frozen=True, slots=True)
class Config:
    """Every setting of one daemon. Durations are seconds. `build_environ` is what pip may see of our environment.

    `failpoints` come from ORPHEUS_FAILPOINTS alone: no file that is left lying about can arm one.
    """

    state_dir: Path
    runtime_dir: Path
    http: str | None = "localhost:7777"
    http_doors: int = 1
    http_admin: bool = False
    http_require_token: bool = False
    isolation: str = "auto"
    log_level: str = "info"
    log_format: str = "text"
    debug: bool = False
    admin_group: str = "orpheus-admin"
    durability: str = "os"
    run_log_capture: bool = True
    start_timeout_s: float = 30.0
    grace_s: float = 2.0
    stop_timeout_s: float = 10.0
    orphan_ttl_s: float = 60.0
    build_timeout_s: float = 900.0
    build_environ: Mapping[str, str] = field(default_factory=dict)
    failpoints: Mapping[str, Trap] = field(default_factory=dict)
    systemd: FromSystemd = field(default_factory=FromSystemd)

    @property
    def control_socket(self) -> Path:
        return self.runtime_dir / "ctl.sock"


def take_handover() -> int | None:
    """The descriptor of what an earlier image of this process hands over. No child of ours shall find it."""
    text = os.environ.pop(HANDOVER, "")
    return int(text) if text.isdigit() else None


def environ_with(handover: int) -> dict[str, str]:
    """Our environment for the next image, with the descriptor of what it is handed."""
    return {**os.environ, HANDOVER: str(handover)}


def environ_behind(tag: str, but: Collection[str] = ()) -> dict[str, str]:
    """Our environment for a child, without the names `but`, behind `tag` (`NAME=value`): who looks for it looks at the
    beginning only.
    """
    name, _, value = tag.partition("=")
    return {name: value, **{other: text for other, text in os.environ.items() if other not in (name, *but)}}


def _switch(text: str) -> bool:
    if text.lower() in ("1", "true", "yes", "on"):
        return True
    if text.lower() in ("", "0", "false", "no", "off"):
        return False
    raise ValueError("it must be true or false")


#: TOML key, environment variable suffix and flag share these names; the value says how text becomes a setting.
_TEXT: dict[str, Any] = {
    "state_dir": Path,
    "runtime_dir": Path,
    "http": str,
    "http_doors": int,
    "http_admin": _switch,
    "http_require_token": _switch,
    "isolation": str,
    "log_level": str,
    "log_format": str,
    "debug": _switch,
    "admin_group": str,
    "durability": str,
    "run_log_capture": _switch,
    "start_timeout_s": float,
    "grace_s": float,
    "stop_timeout_s": float,
    "orphan_ttl_s": float,
    "build_timeout_s": float,
}


#: More processes than this serve nobody faster on one box.
DOORS_LIMIT = 64

_SECONDS = (float, int)
_KINDS: dict[str, tuple[type, ...]] = {
    "state_dir": (type(Path()),), "runtime_dir": (type(Path()),), "http": (str, type(None)), "http_doors": (int,),
    "http_admin": (bool,), "http_require_token": (bool,), "run_log_capture": (bool,),
    "debug": (bool,), "admin_group": (str,), "start_timeout_s": _SECONDS, "grace_s": _SECONDS,
    "stop_timeout_s": _SECONDS, "orphan_ttl_s": _SECONDS, "build_timeout_s": _SECONDS,
}  # fmt: skip
_CHOICES = {
    "isolation": ISOLATIONS, "log_level": LOG_LEVELS, "log_format": LOG_FORMATS, "durability": DURABILITIES}

#: What `localhost` is. Whoever holds only one of them leaves the other to whoever comes.
LOCALHOST = ("127.0.0.1", "::1")

#: The first descriptor that systemd hands over (sd_listen_fds(3)).
LISTEN_FDS_START = 3

#: Where packages come from is the box's business, and boxes say it in these variables.
_BUILD_VARIABLES = re.compile(
    r"PIP_\w+|HOME|XDG_CONFIG_\w+|SSL_CERT_\w+|(?:REQUESTS|CURL)_CA_BUNDLE|(?:https?|no|all)_proxy", re.IGNORECASE)


def load(flags: Mapping[str, Any], environ: Mapping[str, str] | None = None) -> Config:
    """The settings in force. `flags` holds what the command line gave, `config` (a path) included.

    Raises OrpheusError(invalid-request) that names the file, variable or flag that is wrong.
    """
    environ = os.environ if environ is None else environ
    settings: dict[str, Any] = {"state_dir": _state_dir(environ), "runtime_dir": _runtime_dir(environ)}
    settings["build_environ"] = {name: value for name, value in environ.items() if _BUILD_VARIABLES.fullmatch(name)}
    settings["failpoints"] = _failpoints(environ)
    settings["systemd"] = _from_systemd(environ)
    settings.update(_from_file(flags.get("config")))
    settings.update(_from_environ(environ))
    settings.update({name: value for name, value in flags.items() if name in _TEXT and value is not None})
    if flags.get("no_http"):
        settings["http"] = None
    return _checked(settings)


def _state_dir(environ: Mapping[str, str]) -> Path:
    if stated := environ.get("STATE_DIRECTORY"):
        return Path(stated.split(":")[0])
    if os.getuid() == 0:
        return Path("/var/lib/orpheus")
    home = Path(environ.get("XDG_STATE_HOME") or Path(environ.get("HOME", "/")) / ".local/state")
    return home / "orpheus"


def _runtime_dir(environ: Mapping[str, str]) -> Path:
    if stated := environ.get("RUNTIME_DIRECTORY"):
        return Path(stated.split(":")[0])
    if os.getuid() == 0:
        return Path("/run/orpheus")
    return Path(environ.get("XDG_RUNTIME_DIR") or f"/run/user/{os.getuid()}") / "orpheus"


def _from_file(path: str | Path | None) -> dict[str, Any]:
    file = Path(path) if path is not None else DEFAULT_FILE
    try:
        with file.open("rb") as stream:
            table = tomllib.load(stream)
    except FileNotFoundError:
        if path is None:
            return {}
        raise OrpheusError("invalid-request", f"cannot read {file}: no such file") from None
    except (OSError, tomllib.TOMLDecodeError) as error:
        raise OrpheusError("invalid-request", f"cannot read {file}: {error}") from error
    settings: dict[str, Any] = {}
    for name, value in table.items():
        if name not in _TEXT:
            raise OrpheusError("invalid-request", f"{file}: unknown setting {name!r}; known are {', '.join(_TEXT)}")
        settings[name] = Path(value) if name.endswith("_dir") and isinstance(value, str) else value
    return settings


def _from_environ(environ: Mapping[str, str]) -> dict[str, Any]:
    settings: dict[str, Any] = {}
    for name, parse in _TEXT.items():
        text = environ.get(f"ORPHEUS_{name.upper()}")
        if text is not None:
            try:
                settings[name] = parse(text)
            except ValueError as error:
                raise OrpheusError("invalid-request", f"ORPHEUS_{name.upper()}={text!r}: {error}") from error
    return settings


def _failpoints(environ: Mapping[str, str]) -> dict[str, Trap]:
    try:
        return failpoints.parse(environ.get("ORPHEUS_FAILPOINTS", ""))
    except ValueError as error:
        raise OrpheusError("invalid-request", f"ORPHEUS_FAILPOINTS: {error}") from error


def _from_systemd(environ: Mapping[str, str]) -> FromSystemd:
    """What is said to this process. A variable that names another one was inherited by mistake."""
    ours = str(os.getpid())
    try:
        count = int(environ.get("LISTEN_FDS", "0")) if environ.get("LISTEN_PID") == ours else 0
        period_us = int(environ.get("WATCHDOG_USEC", "0")) if environ.get("WATCHDOG_PID", ours) == ours else 0
    except ValueError as error:
        raise OrpheusError("invalid-request", f"LISTEN_FDS or WATCHDOG_USEC: {error}") from error
    return FromSystemd(
        tuple(range(LISTEN_FDS_START, LISTEN_FDS_START + count)), environ.get("NOTIFY_SOCKET") or None,
        period_us / 1_000_000 or None, environ.get("SERVICE_RESULT"),
        Path(units) if (units := environ.get("ORPHEUS_AGENTS_SOCKET")) else None)


def _checked(settings: dict[str, Any]) -> Config:
    for name, value in settings.items():
        kinds = _KINDS.get(name)
        if kinds is not None and type(value) not in kinds:
            kind_text = " or ".join(kind.__name__ for kind in kinds if kind is not type(None))
            raise OrpheusError("invalid-request", f"{name} must be of type {kind_text}, not {value!r}")
    for name, allowed in _CHOICES.items():
        if name in settings and settings[name] not in allowed:
            allowed_text = ", ".join(allowed)
            raise OrpheusError("invalid-request", f"{name} must be one of {allowed_text}, not {settings[name]!r}")
    if settings.get("http") is not None and "http" in settings:
        http_addresses(settings["http"])
    config = Config(**settings)
    for name in ("start_timeout_s", "grace_s", "stop_timeout_s", "orphan_ttl_s", "build_timeout_s"):
        if not 0 < getattr(config, name) < math.inf:
            raise OrpheusError("invalid-request", f"{name} must be a number of seconds above 0")
    if not 1 <= config.http_doors <= DOORS_LIMIT:
        raise OrpheusError("invalid-request", f"http_doors must be from 1 to {DOORS_LIMIT}, not {config.http_doors}")
    return replace(config, state_dir=config.state_dir.absolute(), runtime_dir=config.runtime_dir.absolute(),
                   orphan_ttl_s=float(config.orphan_ttl_s))


def http_addresses(text: str) -> tuple[tuple[str, int], ...]:
    """The hosts, each with the port, that `HOST:PORT` means: both of loopback's for `localhost`, which clients may
    take for either. Only loopback is allowed, for the door has no users and no TLS, and no other name, for what it
    means is somebody else's to say.
    """
    host, _, port = text.rpartition(":")
    host = host.strip("[]")
    if not (port.isascii() and port.isdigit()) or int(port) > 65535:
        raise OrpheusError("invalid-request", f"http must be HOST:PORT, not {text!r}")
    if host == "localhost":
        return tuple((both, int(port)) for both in LOCALHOST)
    if not _is_loopback(host):
        raise OrpheusError("invalid-request", f"http must be on loopback (localhost, 127.0.0.1 or ::1), not {host!r}; "
                                              "put a proxy before it")
    return ((host, int(port)),)


def http_name(addresses: Collection[tuple[str, int]]) -> str | None:
    """The HOST:PORT that means these, which may be any; None when they are more than one setting means."""
    host, port = next(iter(addresses))
    if len(addresses) == 1:
        return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"
    name = f"localhost:{port}"
    return name if sorted(addresses) == sorted(http_addresses(name)) else None


def _is_loopback(host: str) -> bool:
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False
