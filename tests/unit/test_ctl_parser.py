"""The command table, the parser and the manual: one set of rows, and docs/cli.md equal to it."""

import importlib
import re
from pathlib import Path

import pytest

from orpheusctl import answers, ask, manual, parser
from orpheusctl.commands import BY_WORDS, COMMANDS, MEANINGS, Command
from orpheusd.errors import CODES, OrpheusError
from orpheusd.operations import BY_NAME, OPERATIONS

PAGE = Path(__file__).resolve().parents[2] / "docs" / "cli.md"


def test_every_operation_meant_for_the_shell_has_its_command() -> None:
    for operation in OPERATIONS:
        if operation.cli:
            assert BY_WORDS[operation.cli].operation == operation.name


@pytest.mark.parametrize("command", COMMANDS, ids=lambda command: command.words)
def test_a_row_is_whole(command: Command) -> None:
    assert command.operation in BY_NAME or (command.operation == "" and command.about)
    assert callable(importlib.import_module(f"orpheusctl.{command.module}").execute)
    assert any(argument.name == "json" for argument in command.arguments)
    assert all(code in MEANINGS for code in command.codes)
    if command.module == "ask":
        assert command.words in answers._SHOW
    for argument in command.arguments:
        assert not argument.param or command.param(argument) is not None, argument


def test_every_parameter_can_be_said() -> None:
    """But for those that the command itself fills, and those of the other door."""
    filled = {"deploy": {"upload_id", "env", "stream"}, "run": {"input", "session_headers"}, "attach": {"wait"}}
    for command in COMMANDS:
        if command.operation:
            said = {argument.param for argument in command.arguments} | filled.get(command.words, set())
            assert {param.name for param in BY_NAME[command.operation].params} <= said, command.words


def test_every_error_has_a_meaning() -> None:
    assert set(MEANINGS) == set(CODES)


@pytest.mark.parametrize("command", COMMANDS, ids=lambda command: command.words)
def test_help_has_what_a_man_page_has(command: Command) -> None:
    with pytest.raises(parser.HelpWanted) as wanted:
        parser.parse([*command.words.split(), "--help"])
    text = manual.help_text("orpheusctl", wanted.value.words)
    assert text.startswith(f"orpheusctl {command.words} - {command.summary}\n\nusage: orpheusctl {command.words}")
    for heading in ("DESCRIPTION", "OPTIONS", "EXAMPLE", "EXIT CODES"):
        assert re.search(rf"^{heading}", text, re.MULTILINE)
    assert f"$ orpheusctl {command.words}" in text or f"orpheusctl {command.words}" in text.split("EXAMPLE")[1]
    assert "--json" in text and "--socket PATH" in text
    assert max(map(len, text.splitlines())) <= manual.WIDTH
    for argument in command.arguments:
        assert all(flag in text for flag in argument.flags)


@pytest.mark.parametrize("command", COMMANDS, ids=lambda command: command.words)
def test_the_page_holds_the_help_of_every_command(command: Command) -> None:
    assert f"## {command.words}\n\n```text\n{manual.command_help('orpheusctl', command)}```" in PAGE.read_text()


def test_the_page_is_the_manual() -> None:
    assert PAGE.read_text() == manual.page(), "run: python -m orpheusctl.manual > docs/cli.md"


def test_the_examples_parse() -> None:
    for command in COMMANDS:
        for example in command.examples:
            words = re.search(r"orpheusctl ([^|')]*(?:'[^']*')?[^|)\"]*)", example.command)
            assert words is not None
            argv = [word.strip("'") for word in re.findall(r"'[^']*'|\S+", words[1])]
            assert parser.parse(argv).command is command


def test_overview_and_groups() -> None:
    asked = {("--help",): "", ("-h",): "", ("session", "--help"): "session", ("workspace", "-h"): "workspace"}
    for argv, words in asked.items():
        with pytest.raises(parser.HelpWanted) as wanted:
            parser.parse(argv)
        assert wanted.value.words == words
    assert all(f"  {command.words} " in manual.overview("orpheus") for command in COMMANDS)
    assert "orpheus session show|end --help" in manual.help_text("orpheus", "session")


@pytest.mark.parametrize(("argv", "says"), [
    ([], "no command"),
    (["lst"], "did you mean list"),
    (["zzz"], "no command 'zzz'$"),
    (["session"], "show or end"),
    (["session", "kill"], "show or end"),
    (["run"], "NAME"),
    (["run", "a", "{}", "extra"], "extra"),
    (["run", "a", "--affinity", "hard"], "hard"),
    (["run", "a", "--timeout", "soon"], "soon"),
    (["run", "a", "--tim", "3"], "--tim"),
    (["list", "--verbos"], "--verbos"),
    (["--sock", "x", "list"], "--sock"),
    (["workspace", "clean", "a"], "say --force"),
])
def test_a_wrong_command_line_is_refused(argv: list[str], says: str) -> None:
    with pytest.raises(parser.UsageError, match=says):
        parser.parse(argv)


def test_global_options_stand_before_and_after() -> None:
    for argv in (["--socket", "/s", "--no-color", "list"], ["list", "--socket", "/s", "--no-color"]):
        arguments = parser.parse(argv).arguments
        assert (arguments.socket, arguments.no_color) == ("/s", True)
    assert parser.parse(["--socket", "/a", "list", "--socket", "/b"]).arguments.socket == "/b"
    assert parser.parse(["list"]).arguments.socket is None


def test_arguments_become_parameters() -> None:
    call = parser.parse(["run", "a", "-", "--session", "s", "--affinity", "strict", "--overlap", "queue",
                         "--require-warm", "--timeout", "1.5", "--stream"])
    assert ask.given(call.command, call.arguments) == {
        "agent": "a", "session_id": "s", "affinity": "strict", "overlap": "queue", "require": "warm", "timeout_s": 1.5,
        "stream": True}
    operation, params = ask.request(parser.parse(["sessions", "a", "-n", "0"]))
    assert (operation.name, params) == ("session.list", {"agent": "a", "limit": 0})
    assert ask.request(parser.parse(["list"]))[0].name == "agent.list"
    assert ask.request(parser.parse(["list", "a"]))[0].name == "agent.show"


@pytest.mark.parametrize("argv", [
    ["stats", "Bad_Name"], ["session", "show", "a", "../x"], ["cancel", "-- no"], ["sessions", "a", "-n", "-1"],
    ["logs", "a", "--run", "x y"],
])
def test_names_are_checked_before_anything_is_sent(argv: list[str]) -> None:
    with pytest.raises((OrpheusError, parser.UsageError)):
        ask.request(parser.parse(argv))


def test_a_negative_number_is_an_input() -> None:
    assert parser.parse(["run", "a", "-5"]).arguments.input == "-5"
