"""A place to build virtual environments in, and packages whose builds run what a test wants.

The packages are the only ones there are: nothing is fetched from anywhere.
"""

import io
import subprocess
import tarfile
from pathlib import Path

import pytest

from orpheusd.deploy.build import ensure_venv
from orpheusd.process.sandbox import Isolation, detect

#: A build takes 4 s on a quiet machine.
TIMEOUT_S = 60.0

#: Before every backend: `wheel(...)` makes the wheel of a package with one module.
WHEEL = '''
import pathlib, sys, zipfile

def wheel(directory, name, text):
    file = f"{name}-1.0-py3-none-any.whl"
    with zipfile.ZipFile(pathlib.Path(directory, file), "w") as archive:
        archive.writestr(f"{name}.py", text)
        archive.writestr(f"{name}-1.0.dist-info/METADATA", f"Metadata-Version: 2.1\\nName: {name}\\nVersion: 1.0\\n")
        archive.writestr(f"{name}-1.0.dist-info/WHEEL", "Wheel-Version: 1.0\\nTag: py3-none-any\\n")
        archive.writestr(f"{name}-1.0.dist-info/RECORD", "")
    return file
'''


def isolated(mode: str) -> Isolation:
    found = detect("auto" if mode == "bwrap" else "none")
    if found.mode != mode:
        pytest.skip(found.reason)
    return found


class Box:
    """A state directory, and a folder of packages that is the only index there is."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.state = root / "state"
        self.packages = root / "packages"
        self.lines: list[str] = []
        for path in (self.state / "venvs", self.packages):
            path.mkdir(parents=True)
        (root / "secret").write_text("precious")

    def add(self, name: str, backend: str) -> None:
        """A source package whose build runs `backend`, with `WHEEL` at hand, and that needs nothing to be built."""
        files = {
            "pyproject.toml": '[build-system]\nrequires = []\nbuild-backend = "backend"\nbackend-path = ["."]\n',
            "backend.py": WHEEL + backend,
            "PKG-INFO": f"Metadata-Version: 2.1\nName: {name}\nVersion: 1.0\n",
        }
        with tarfile.open(self.packages / f"{name}-1.0.tar.gz", "w:gz") as archive:
            for file, text in files.items():
                info = tarfile.TarInfo(f"{name}-1.0/{file}")
                info.size = len(text.encode())
                archive.addfile(info, io.BytesIO(text.encode()))

    @property
    def environ(self) -> dict[str, str]:
        return {"PIP_CONFIG_FILE": "/dev/null", "PIP_NO_INDEX": "1", "PIP_FIND_LINKS": str(self.packages),
                "HOME": str(self.root), "API_KEY": "planted"}

    async def ensure(self, text: str, isolation: Isolation, timeout_s: float = TIMEOUT_S) -> Path | None:
        requirements = self.root / "requirements.txt"
        requirements.write_text(text)
        return await ensure_venv(requirements, self.state, isolation, self.lines.append, timeout_s, self.environ)

    def left(self) -> list[str]:
        return sorted(path.name for path in (self.state / "venvs").iterdir())


def python(venv: Path, code: str) -> str:
    command = [str(venv / "bin/python"), "-I", "-c", code]
    done = subprocess.run(command, capture_output=True, text=True, check=True, timeout=20)
    return done.stdout.strip()
