"""What pip in a build is told of the host: pip's own order of files and variables, and the places they name."""

from pathlib import Path

import pytest

from orpheusd.deploy.pipconf import host_settings


@pytest.fixture
def home(tmp_path: Path) -> Path:
    (tmp_path / ".config/pip").mkdir(parents=True)
    (tmp_path / ".pip").mkdir()
    return tmp_path


def settings(home: Path, **environ: str) -> dict[str, str]:
    return host_settings({"HOME": str(home), "XDG_CONFIG_DIRS": "/nowhere", **environ}).env


def test_files_and_variables_override_in_pips_order(home: Path) -> None:
    assert "PIP_INDEX_URL" not in settings(home)
    (home / ".pip/pip.conf").write_text("[global]\nindex-url = http://legacy\nretries = 1\n")
    (home / ".config/pip/pip.conf").write_text("[global]\nindex-url = http://user\n[install]\ntrusted-host = user\n")
    assert settings(home)["PIP_INDEX_URL"] == "http://user"
    assert settings(home)["PIP_RETRIES"] == "1"
    assert settings(home)["PIP_TRUSTED_HOST"] == "user"
    stated = home / "stated.conf"
    stated.write_text("[global]\nindex_url = http://stated\ntrusted-host = weaker\n")
    told = settings(home, PIP_CONFIG_FILE=str(stated))
    assert told["PIP_INDEX_URL"] == "http://stated"
    assert told["PIP_TRUSTED_HOST"] == "weaker" and "PIP_RETRIES" not in told
    assert settings(home, PIP_CONFIG_FILE=str(stated), PIP_INDEX_URL="http://variable")["PIP_INDEX_URL"] == "http://variable"
    assert settings(home, PIP_CONFIG_FILE="/dev/null") == {}


def test_install_overrides_global_wherever_it_stands(home: Path) -> None:
    (home / ".pip/pip.conf").write_text("[install]\nindex-url = http://install\n")
    (home / ".config/pip/pip.conf").write_text("[global]\nindex-url = http://global\n[list]\nindex-url = http://list\n")
    assert settings(home)["PIP_INDEX_URL"] == "http://install"


def test_only_where_packages_come_from_is_passed_on(home: Path) -> None:
    (home / ".config/pip/pip.conf").write_text("[global]\ntarget = /etc\nuser = true\nextra-index-url =\n  http://a\n  http://b\n")
    told = settings(home, PIP_TARGET="/etc", PIP_REQUIRE_VIRTUALENV="1", OTHER="x", https_proxy="http://proxy:3128")
    assert told["PIP_EXTRA_INDEX_URL"] == "http://a http://b"
    assert told["https_proxy"] == "http://proxy:3128"
    assert not {"PIP_TARGET", "PIP_USER", "PIP_REQUIRE_VIRTUALENV", "OTHER"} & told.keys()


@pytest.mark.parametrize("content", [b"[global\n", b"index-url = x\n", b"\xff\xfe", b"[global]\na=1\na=2\n"])
def test_a_file_that_cannot_be_read_says_nothing(home: Path, content: bytes) -> None:
    (home / ".config/pip/pip.conf").write_bytes(content)
    (home / ".pip/pip.conf").write_text("[global]\nindex-url = http://legacy\n")
    assert settings(home)["PIP_INDEX_URL"] == "http://legacy"


def test_places_on_disk_are_bound_and_no_others(home: Path) -> None:
    for name in ("mirror/simple", "odd index", "wheels", "pages"):
        (home / name).mkdir(parents=True)
    (home / "pages/links.html").write_text("")
    (home / "ca.pem").write_text("")
    environ = {
        "HOME": str(home), "XDG_CONFIG_DIRS": "/nowhere", "PIP_CONFIG_FILE": "/dev/null",
        "PIP_INDEX_URL": f"file://{home}/mirror/simple",
        "PIP_EXTRA_INDEX_URL": f"file://{home}/odd%20index file://{home}/none http://far/simple /etc",
        "PIP_FIND_LINKS": f"{home}/wheels {home}/pages/links.html relative / /usr/share /none",
        "PIP_CERT": f"{home}/ca.pem", "SSL_CERT_FILE": "/etc/ssl/certs/ca-certificates.crt",
    }
    assert host_settings(environ).binds == tuple(
        home / name for name in ("ca.pem", "mirror", "odd index", "pages", "wheels"))
