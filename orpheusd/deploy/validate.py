"""`python -m orpheusd.deploy.validate PATH [--json]`: would this folder deploy? Needs no daemon.

It asks the parts that a deploy asks, in the same order, and prints what they say. Exit code 0: valid; 2: not;
130: Ctrl-C.
"""

import argparse
import json
import sys
import warnings
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from orpheusd.agents import Manifest, parse_manifest
from orpheusd.deploy import importcheck
from orpheusd.deploy.build import read_requirements
from orpheusd.deploy.bundle import MANIFEST, REQUIREMENTS
from orpheusd.deploy.yamldoc import LIMIT_BYTES
from orpheusd.errors import CODES, OrpheusError
from orpheusd.process.sandbox import find_interpreter

EXIT_VALID = 0
EXIT_INVALID = 2


@dataclass(slots=True)
class Report:
    """What was found. A problem is {"file", "line", "field", "found", "allowed", "message"}; line 0 is unknown."""

    name: str = ""
    problems: list[dict[str, Any]] = field(default_factory=list)
    warnings: list[str] = field(default_factory=list)

    @property
    def valid(self) -> bool:
        return not self.problems

    def problem(self, file: str, message: str, line: int = 0, **more: Any) -> None:
        self.problems.append({"file": file, "line": line, "field": "", "found": "", "allowed": "",
                              "message": message, **more})

    def as_json(self) -> str:
        return json.dumps({"valid": self.valid, "name": self.name, "problems": self.problems,
                           "warnings": self.warnings}, ensure_ascii=False)


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="orpheusctl validate", description="check an agent's folder")
    parser.add_argument("path", type=Path, help="the folder that holds agent.yaml")
    parser.add_argument("--json", action="store_true", help="print the report as JSON")
    given = parser.parse_args(arguments)
    try:
        report = check(given.path)
    except KeyboardInterrupt:
        return CODES["cancelled"].exit_code
    if given.json:
        print(report.as_json())
        return EXIT_VALID if report.valid else EXIT_INVALID
    for warning in report.warnings:
        print(f"warning: {warning}", file=sys.stderr)
    for problem in report.problems:
        place = f"{problem['file']}, line {problem['line']}" if problem["line"] else problem["file"]
        print(f"{place}: {problem['message']}", file=sys.stderr)
    if report.valid:
        print(f"{report.name} is valid")
    return EXIT_VALID if report.valid else EXIT_INVALID


def check(path: Path, import_deadline_s: float = importcheck.DEADLINE_S) -> Report:
    """Everything that a deploy of the folder `path` would find, but for the building of its packages."""
    report = Report()
    code_dir = (path.parent if path.name == MANIFEST and path.is_file() else path).resolve()
    if not code_dir.is_dir():
        report.problem(str(path), "is not a folder; name the folder that holds agent.yaml")
        return report
    manifest = _manifest(code_dir, report)
    requirements = _requirements(code_dir, report)
    if manifest is not None:
        report.name = manifest.name
        report.warnings += manifest.warnings()
        _module(code_dir, manifest, report)
        if report.valid:
            _import(code_dir, manifest, requirements, report, import_deadline_s)
    return report


def _manifest(code_dir: Path, report: Report) -> Manifest | None:
    try:
        with (code_dir / MANIFEST).open("rb") as stream:
            text = stream.read(LIMIT_BYTES + 1).decode("utf-8-sig")
        return parse_manifest(text)
    except FileNotFoundError:
        report.problem(MANIFEST, f"there is no such file in {code_dir}; an agent's folder holds one")
    except UnicodeDecodeError:
        report.problem(MANIFEST, "the file is not UTF-8 text; save it as UTF-8")
    except OSError as error:
        report.problem(MANIFEST, f"cannot read it: {error.strerror}")
    except OrpheusError as error:
        for found in error.details["problems"]:
            report.problem(MANIFEST, **found)
    return None


def _requirements(code_dir: Path, report: Report) -> bool:
    """Whether packages are to be installed."""
    try:
        return read_requirements(code_dir / REQUIREMENTS) is not None
    except OrpheusError as error:
        report.problem(REQUIREMENTS, error.message)
        return True


def _module(code_dir: Path, manifest: Manifest, report: Report) -> None:
    base = code_dir.joinpath(*manifest.module_name.split("."))
    files = [file for file in (base.with_name(f"{base.name}.py"), base / "__init__.py") if file.is_file()]
    wanted = str(base.relative_to(code_dir)) + ".py"
    if not files:
        there = sorted(file.name for file in code_dir.glob("*.py"))[:10]
        has = f"; there is {', '.join(there)}" if there else ""
        report.problem(MANIFEST, f"`module` names {manifest.module_name}, but the folder has no {wanted}{has}",
                       field="module")
        return
    name = str(files[0].relative_to(code_dir))
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            compile(files[0].read_bytes(), name, "exec", dont_inherit=True)
    except SyntaxError as error:
        report.problem(name, f"{type(error).__name__}: {error.msg}", error.lineno or 0)
    except (ValueError, OSError) as error:
        report.problem(name, f"cannot be read as Python: {error}")


def _import(code_dir: Path, manifest: Manifest, requirements: bool, report: Report, deadline_s: float) -> None:
    # without requirements a deploy uses the plain interpreter; with them, this one may have some
    python = Path(sys.executable) if requirements else find_interpreter().executable
    outcome = importcheck.run(code_dir, manifest, python, deadline_s)
    if outcome.ok:
        return
    package = outcome.missing_module.partition(".")[0]
    own = package and ((code_dir / package).is_dir() or (code_dir / f"{package}.py").is_file())
    if package and not own:
        if requirements:
            report.warnings.append(
                f"{package} is not installed here, so the import of {manifest.module_name} was not checked; "
                f"a deploy installs {REQUIREMENTS} first")
            return
        report.problem(outcome.file or MANIFEST, f"there is no module {package}; name its package in {REQUIREMENTS}",
                       outcome.line)
    elif outcome.missing_env and outcome.file:
        report.warnings.append(
            f"importing {manifest.module_name} fails here ({outcome.file}, line {outcome.line}: {outcome.message}), "
            f"perhaps because {', '.join(outcome.missing_env)} is not set")
    else:
        report.problem(outcome.file or MANIFEST, outcome.message, outcome.line)


if __name__ == "__main__":
    sys.exit(main())
