"""`orpheusd`: reads the command line, sets up logging, and runs the daemon in the foreground."""

import argparse
import asyncio
import faulthandler
import json
import logging
import os
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NoReturn

import orpheusd
from orpheusd import failpoints
from orpheusd.config import ISOLATIONS, LOG_FORMATS, LOG_LEVELS, Config, load, take_handover
from orpheusd.doors.token import make_token
from orpheusd.errors import EXIT_FAULT, CannotStart, OrpheusError


def main(argv: Sequence[str] | None = None) -> int:
    args = _parser().parse_args(argv)
    left = take_handover()
    try:
        config = load(vars(args))
        if args.check:
            _import_daemon()
            print(f"the settings are good: state {config.state_dir}, runtime {config.runtime_dir}, "
                  f"http {config.http or 'off'}, isolation {config.isolation}")
            return 0
        if args.make_token:
            print(f"made a new token: {make_token(config.state_dir)}; a restart of the daemon takes it")
            return 0
        _set_up_logging(config)
        # who ends us because we do not move, as a watchdog does by SIGABRT, finds in the log where we stood
        faulthandler.enable()
        failpoints.arm(config.failpoints)
        _run(config, lambda: load(vars(args)), left, args.reap)
    except OrpheusError as error:
        print(f"orpheusd: {error.message}", file=sys.stderr)
        return error.exit_code if isinstance(error, CannotStart) else error.outcome.exit_code


def _run(config: Config, configure: Callable[[], Config], left: int | None, reap: bool) -> NoReturn:
    new_event_loop, serve, clean_up = _import_daemon()
    work = clean_up(config) if reap else serve(config, configure, left)
    try:
        code = asyncio.Runner(loop_factory=new_event_loop).run(work)
    except OrpheusError:
        raise
    except Exception:  # whatever it was, the log has it and the exit code says so
        logging.getLogger("orpheusd").critical("ending because of a fault", exc_info=True)
        code = EXIT_FAULT
    # What can be closed is closed. What a thread still does it does for a caller who is gone; to end in order would be
    # to wait for it, however long it takes.
    logging.shutdown()
    os._exit(code)


def _import_daemon() -> tuple[Any, Any, Any]:
    """The loop and the daemon that runs on it; not at the top, so that --help stays quick."""
    import uvloop  # noqa: PLC0415

    from orpheusd.daemon import clean_up, serve  # noqa: PLC0415

    return uvloop.new_event_loop, serve, clean_up


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="orpheusd",
        description="Keep AI agents warm: the supervisor daemon. Runs in the foreground and logs to stderr.",
        epilog="Settings come from the defaults, then the TOML file, then ORPHEUS_* variables, then these flags. "
               "Example: orpheusd --state-dir ~/.local/state/orpheus --http localhost:8080",
    )
    parser.add_argument("--config", metavar="FILE", help="settings file (default: /etc/orpheus/orpheusd.toml)")
    parser.add_argument("--state-dir", metavar="DIR", type=Path, help="agents, workspaces, logs")
    parser.add_argument("--runtime-dir", metavar="DIR", type=Path, help="sockets")
    http = parser.add_mutually_exclusive_group()
    http.add_argument("--http", metavar="HOST:PORT", help="the HTTP door, on loopback (default: localhost:7777)")
    http.add_argument("--no-http", action="store_true", help="no HTTP door")
    parser.add_argument("--http-doors", metavar="N", type=int, help="processes that serve HTTP (default: 1)")
    parser.add_argument("--isolation", choices=ISOLATIONS, help="how agents are confined (default: auto)")
    parser.add_argument("--log-level", choices=LOG_LEVELS, help="default: info")
    parser.add_argument("--log-format", choices=LOG_FORMATS, help="default: text")
    parser.add_argument("--debug", action="store_true", default=None, help="check the core's invariants at every step")
    parser.add_argument("--http-admin", action="store_true", default=None,
                        help="changes over HTTP too, for whoever has the token")
    parser.add_argument("--http-require-token", action="store_true", default=None,
                        help="nothing over HTTP without the token")
    parser.add_argument("--make-token", action="store_true", help="make the token for HTTP, and exit")
    parser.add_argument("--reap", action="store_true", help="end what a daemon that was killed has left, and exit")
    parser.add_argument("--check", action="store_true", help="check the settings and the installation, and exit")
    parser.add_argument("--version", action="version", version=f"orpheusd {orpheusd.__version__}")
    return parser


def _set_up_logging(config: Config) -> None:
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(_JsonFormatter() if config.log_format == "json" else _TextFormatter())
    logging.basicConfig(level=config.log_level.upper(), handlers=[handler])


class _TextFormatter(logging.Formatter):
    """One line an event. Control characters are escaped: what agents print must not forge lines."""

    def __init__(self) -> None:
        super().__init__("%(asctime)s %(levelname)s %(name)s: %(message)s", "%Y-%m-%dT%H:%M:%S")

    def formatMessage(self, record: logging.LogRecord) -> str:  # noqa: N802 (the standard library's name)
        record.message = "".join(c if c.isprintable() else repr(c)[1:-1] for c in record.message)
        return super().formatMessage(record)

    def formatException(self, ei: Any) -> str:  # noqa: N802
        return "".join(c if c.isprintable() or c == "\n" else repr(c)[1:-1] for c in super().formatException(ei))


class _JsonFormatter(logging.Formatter):
    def format(self, record: logging.LogRecord) -> str:
        row = {"time": round(time.time(), 3), "level": record.levelname.lower(), "logger": record.name,
               "message": record.getMessage()}  # fmt: skip
        if record.exc_info:
            row["traceback"] = self.formatException(record.exc_info)
        return json.dumps(row)


if __name__ == "__main__":
    sys.exit(main())
