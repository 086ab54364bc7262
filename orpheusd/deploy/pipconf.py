"""What pip inside a build must know of the host: where packages come from, and how to reach that place.

A box behind a mirror says so in pip's configuration files or in PIP_* variables; a sandbox sees neither. So
the settings that say where packages come from are read here, in pip's own order, and handed on as variables.
Everything else (where to install, which user) stays outside. Nothing is read but those files.
"""

import configparser
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import NamedTuple
from urllib.parse import unquote, urlsplit

#: pip's options that say where packages come from and how to get them. Any other option stays outside.
OPTIONS = (
    "index-url", "extra-index-url", "find-links", "no-index", "trusted-host", "cert", "client-cert", "proxy",
    "timeout", "default-timeout", "retries", "prefer-binary", "only-binary", "no-binary", "pre", "constraint",
)

#: Variables that the libraries below pip read themselves.
VARIABLES = (
    "HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY", "NO_PROXY", "http_proxy", "https_proxy", "all_proxy", "no_proxy",
    "REQUESTS_CA_BUNDLE", "CURL_CA_BUNDLE", "SSL_CERT_FILE", "SSL_CERT_DIR",
)

_PATH_OPTIONS = ("index-url", "extra-index-url", "find-links", "constraint", "cert", "client-cert")
_PATH_VARIABLES = ("REQUESTS_CA_BUNDLE", "CURL_CA_BUNDLE", "SSL_CERT_FILE", "SSL_CERT_DIR")

#: What every sandbox shows anyway.
_VISIBLE = ("/usr", "/etc/ssl/certs", "/etc/pki/ca-trust/extracted", "/etc/pki/tls/certs")


class PipSettings(NamedTuple):
    """Variables for pip, and what must be readable at its own path for them to mean anything."""

    env: dict[str, str]
    binds: tuple[Path, ...]


def host_settings(environ: Mapping[str, str]) -> PipSettings:
    """The host's settings, for the environment and home directory of the daemon's user."""
    options: dict[str, str] = {}
    sections: dict[str, dict[str, str]] = {"global": {}, "install": {}}
    for file in _files(environ, Path(environ.get("HOME") or Path.home())):
        for section, found in _sections(file).items():
            sections[section].update(found)
    for found in (sections["global"], sections["install"], _from_environ(environ)):
        options.update({name: value for name, value in found.items() if name in OPTIONS and value.strip()})
    env = {f"PIP_{name.upper().replace('-', '_')}": " ".join(value.split()) for name, value in options.items()}
    others = {name: environ[name] for name in VARIABLES if environ.get(name)}
    words = [(name, word) for name in _PATH_OPTIONS for word in options.get(name, "").split()]
    words += [("", others[name]) for name in _PATH_VARIABLES if name in others]
    binds = {path for name, word in words if (path := _local(name, word)) is not None}
    return PipSettings({**others, **env}, tuple(sorted(binds)))


def _files(environ: Mapping[str, str], home: Path) -> Iterator[Path]:
    """pip's configuration files, the later overriding the earlier (pip's documentation, "Configuration")."""
    stated = environ.get("PIP_CONFIG_FILE")
    if stated == "/dev/null":
        return
    for directory in environ.get("XDG_CONFIG_DIRS", "/etc/xdg").split(":"):
        yield Path(directory) / "pip/pip.conf"
    yield Path("/etc/pip.conf")
    if stated is None or not Path(stated).exists():
        yield home / ".pip/pip.conf"
        yield Path(environ.get("XDG_CONFIG_HOME") or home / ".config") / "pip/pip.conf"
    yield Path(sys.base_prefix) / "pip.conf"
    yield Path(sys.prefix) / "pip.conf"
    if stated is not None:
        yield Path(stated)


def _sections(file: Path) -> dict[str, dict[str, str]]:
    """The two sections that concern `pip install`. A file that cannot be read says nothing."""
    parser = configparser.RawConfigParser()
    try:
        parser.read_string(file.read_text("utf-8"), str(file))
    except (OSError, UnicodeDecodeError, configparser.Error):
        return {}
    return {name: {_option(key): value for key, value in parser.items(name) if value}
            for name in ("global", "install") if parser.has_section(name)}


def _from_environ(environ: Mapping[str, str]) -> dict[str, str]:
    return {_option(name[4:]): value for name, value in environ.items() if name.startswith("PIP_")}


def _option(name: str) -> str:
    return name.lower().replace("_", "-").removeprefix("--")


def _local(option: str, word: str) -> Path | None:
    """The existing file or directory of this box that `word` stands for, if it stands for one."""
    if word.startswith("file:"):
        path = Path(unquote(urlsplit(word).path))
    elif word.startswith("/") and "index" not in option:
        path = Path(word)
    else:
        return None
    if option == "find-links" and path.is_file():
        path = path.parent  # a page of links, relative to it
    if "index" in option and path.name == "simple" and path.parent != path.parent.parent:
        path = path.parent  # the pages of an index on disk link to files beside simple/
    if not path.is_absolute() or not path.exists() or path == Path("/"):
        return None
    return None if any(path.is_relative_to(visible) for visible in _VISIBLE) else path
