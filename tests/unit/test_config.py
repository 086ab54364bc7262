"""The daemon's settings: a file, then the environment, then flags; and every bad value is named."""

import os
from collections.abc import Mapping
from dataclasses import fields
from pathlib import Path
from typing import Any

import pytest

from orpheusd import config
from orpheusd.config import Config, http_addresses, http_name, load
from orpheusd.errors import OrpheusError

#: A value other than the default for each setting, as a file, a variable and a flag have it.
EACH: dict[str, tuple[Any, str, Any]] = {
    "state_dir": ("/f/state", "/e/state", Path("/g/state")),
    "runtime_dir": ("/f/run", "/e/run", Path("/g/run")),
    "http": ("127.0.0.1:1001", "127.0.0.1:1002", "127.0.0.1:1003"),
    "http_doors": (2, "3", 4),
    "http_admin": (True, "no", True),
    "http_require_token": (True, "no", True),
    "isolation": ("none", "bwrap", "auto"),
    "log_level": ("debug", "warning", "error"),
    "log_format": ("json", "text", "json"),
    "debug": (True, "no", True),
    "admin_group": ("f", "e", "g"),
    "durability": ("disk", "os", "disk"),
    "run_log_capture": (False, "yes", False),
    "start_timeout_s": (1.5, "2.5", 3.5),
    "grace_s": (1.5, "2.5", 3.5),
    "stop_timeout_s": (1.5, "2.5", 3.5),
    "orphan_ttl_s": (1.5, "2.5", 3.5),
    "build_timeout_s": (1.5, "2.5", 3.5),
}


@pytest.fixture(autouse=True)
def _no_file_of_the_box(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(config, "DEFAULT_FILE", tmp_path / "none.toml")


def written(folder: Path, **settings: Any) -> Path:
    file = folder / "orpheusd.toml"
    texts = {name: str(value).lower() if isinstance(value, bool | int | float) else f'"{value}"'
             for name, value in settings.items()}
    file.write_text("".join(f"{name} = {text}\n" for name, text in texts.items()))
    return file


def refused(flags: Mapping[str, Any], environ: Mapping[str, str] | None = None) -> str:
    with pytest.raises(OrpheusError) as raised:
        load(flags, environ or {})
    assert raised.value.code == "invalid-request"
    return raised.value.message


def test_every_setting_can_be_set() -> None:
    assert {field.name for field in fields(Config)} - {"build_environ", "failpoints", "systemd"} == set(EACH)


@pytest.mark.parametrize("name", EACH)
def test_the_file_then_the_environment_then_flags(name: str, tmp_path: Path) -> None:
    in_file, in_environ, in_flags = EACH[name]
    file, environ = written(tmp_path, **{name: in_file}), {f"ORPHEUS_{name.upper()}": in_environ}
    kind = type(getattr(load({}, environ), name))
    assert getattr(load({"config": file}, {}), name) == (Path(in_file) if name.endswith("_dir") else in_file)
    parsed = False if name in ("debug", "http_admin", "http_require_token") else kind(in_environ)
    assert getattr(load({"config": file}, environ), name) == parsed
    assert getattr(load({"config": file, name: in_flags}, environ), name) == in_flags
    assert getattr(load({"config": file, name: None}, environ), name) == parsed


def test_nothing_said_is_the_default() -> None:
    settings = load({}, {})
    assert (settings.http, settings.isolation, settings.durability) == ("localhost:7777", "auto", "os")
    assert settings.control_socket == settings.runtime_dir / "ctl.sock"
    assert settings.build_environ == {}


def test_the_default_file_is_read_when_it_is_there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(config, "DEFAULT_FILE", written(tmp_path, admin_group="people"))
    assert load({}, {}).admin_group == "people"


def test_no_http_is_stronger_than_an_address() -> None:
    assert load({"no_http": True, "http": "127.0.0.1:1"}, {}).http is None


@pytest.mark.parametrize("text", ["1", "true", "YES"])
def test_debug_is_switched_on_by_a_word(text: str) -> None:
    assert load({}, {"ORPHEUS_DEBUG": text}).debug


def test_directories_are_those_of_systemd_or_of_the_user(monkeypatch: pytest.MonkeyPatch) -> None:
    given = load({}, {"STATE_DIRECTORY": "/s/one:/s/two", "RUNTIME_DIRECTORY": "/r/one:/r/two"})
    assert (given.state_dir, given.runtime_dir) == (Path("/s/one"), Path("/r/one"))
    monkeypatch.setattr(os, "getuid", lambda: 0)
    assert (load({}, {}).state_dir, load({}, {}).runtime_dir) == (Path("/var/lib/orpheus"), Path("/run/orpheus"))
    monkeypatch.setattr(os, "getuid", lambda: 1000)
    user = load({}, {"HOME": "/home/ann"})
    assert (user.state_dir, user.runtime_dir) == (
        Path("/home/ann/.local/state/orpheus"), Path("/run/user/1000/orpheus"))
    user = load({}, {"HOME": "/home/ann", "XDG_STATE_HOME": "/x/state", "XDG_RUNTIME_DIR": "/x/run"})
    assert (user.state_dir, user.runtime_dir) == (Path("/x/state/orpheus"), Path("/x/run/orpheus"))


def test_a_relative_directory_is_made_absolute() -> None:
    assert load({"state_dir": Path("state")}, {}).state_dir == Path("state").absolute()


def test_pip_sees_what_says_where_packages_come_from_and_nothing_else() -> None:
    environ = {"PIP_INDEX_URL": "u", "HTTPS_PROXY": "p", "no_proxy": "n", "HOME": "/h", "SSL_CERT_FILE": "c",
               "OPENAI_API_KEY": "secret", "PATH": "/bin", "MY_PIP_INDEX_URL": "x"}
    assert set(load({}, environ).build_environ) == {"PIP_INDEX_URL", "HTTPS_PROXY", "no_proxy", "HOME",
                                                     "SSL_CERT_FILE"}


# Bad values


@pytest.mark.parametrize(("name", "value"), [
    ("isolation", "docker"), ("log_level", "loud"), ("log_format", "xml"), ("durability", "paper"),
    ("start_timeout_s", 0), ("grace_s", -1), ("stop_timeout_s", 0), ("orphan_ttl_s", 0),
    ("build_timeout_s", float("nan")),
    ("http", "everywhere"),
])
def test_a_bad_value_is_named_wherever_it_comes_from(name: str, value: Any, tmp_path: Path) -> None:
    for message in (refused({name: value}), refused({}, {f"ORPHEUS_{name.upper()}": str(value)}),
                    refused({"config": written(tmp_path, **{name: value})})):
        assert name in message


@pytest.mark.parametrize(("name", "text"), [("http_doors", "two"), ("grace_s", "soon"), ("build_timeout_s", "")])
def test_a_variable_that_is_no_number_is_named(name: str, text: str) -> None:
    assert refused({}, {f"ORPHEUS_{name.upper()}": text}).startswith(f"ORPHEUS_{name.upper()}={text!r}")


def test_a_choice_that_is_not_there_names_those_that_are() -> None:
    assert "auto, bwrap, none" in refused({"isolation": "docker"})


def test_an_unknown_setting_of_the_file_is_named(tmp_path: Path) -> None:
    file = written(tmp_path, statedir="/x")
    message = refused({"config": file})
    assert str(file) in message and "'statedir'" in message and "state_dir" in message


def test_a_file_that_was_asked_for_must_be_there(tmp_path: Path) -> None:
    assert f"cannot read {tmp_path / 'no.toml'}: no such file" in refused({"config": tmp_path / "no.toml"})
    assert str(tmp_path) in refused({"config": tmp_path})


def test_a_file_that_is_no_toml_says_where(tmp_path: Path) -> None:
    file = tmp_path / "orpheusd.toml"
    file.write_text("http = \n")
    message = refused({"config": file})
    assert str(file) in message and "line 1" in message


@pytest.mark.parametrize(("text", "addresses"), [
    ("127.0.0.1:7777", [("127.0.0.1", 7777)]), ("localhost:1", [("127.0.0.1", 1), ("::1", 1)]),
    ("[::1]:80", [("::1", 80)]), ("127.9.9.9:0", [("127.9.9.9", 0)]),
])
def test_an_address_on_loopback_is_taken_and_has_one_name(text: str, addresses: list[tuple[str, int]]) -> None:
    assert list(http_addresses(text)) == addresses
    assert http_name(addresses) == http_name(addresses[::-1]) == text


@pytest.mark.parametrize("addresses", [
    [("127.0.0.1", 1), ("::1", 2)], [("127.0.0.1", 1), ("127.0.0.1", 1)], [("127.0.0.1", 1), ("127.0.0.2", 1)],
    [("127.0.0.1", 1), ("::1", 1), ("127.0.0.2", 1)]])
def test_what_no_setting_means_has_no_name(addresses: list[tuple[str, int]]) -> None:
    assert http_name(addresses) is None


@pytest.mark.parametrize("text", [
    "0.0.0.0:80", "192.168.1.1:80", "[::]:80", "example.org:80", ":80", "127.rebind.example:80", "127.1:80",
    "localhost.:80", "localhost.example.org:80", "127.0.0.1.example.org:80"])
def test_any_other_address_and_any_other_name_is_refused_with_advice(text: str) -> None:
    with pytest.raises(OrpheusError, match="put a proxy before it"):
        http_addresses(text)


@pytest.mark.parametrize("text", ["127.0.0.1", "127.0.0.1:", "127.0.0.1:http", "127.0.0.1:65536", "127.0.0.1:-1", ""])
def test_an_address_needs_a_port(text: str) -> None:
    with pytest.raises(OrpheusError, match="HOST:PORT"):
        http_addresses(text)


def test_a_childs_environment_begins_with_its_tag(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("NOTIFY_SOCKET", "/run/systemd/notify")
    monkeypatch.setenv("ORPHEUS_DOOR_OF", "/of/another")
    made = config.environ_behind("ORPHEUS_DOOR_OF=/run/a=b", ("NOTIFY_SOCKET",))
    assert next(iter(made.items())) == ("ORPHEUS_DOOR_OF", "/run/a=b")
    assert made == {**{name: text for name, text in os.environ.items() if name != "NOTIFY_SOCKET"},
                    "ORPHEUS_DOOR_OF": "/run/a=b"}
