"""The command line to a command and its arguments, by argparse, from the rows of `commands.py`.

Only the parser of the command asked for is built: start-up time is part of every run. It prints nothing;
help and usage are written by `manual.py`.
"""

import argparse
import difflib
from collections.abc import Sequence
from typing import Any, NamedTuple, NoReturn

from orpheusctl import units
from orpheusctl.commands import BY_WORDS, GLOBALS, Argument, Command
from orpheusd.operations import KINDS


class Call(NamedTuple):
    """What was asked: `arguments` holds a value for each argument of the command and of `GLOBALS`."""

    command: Command
    arguments: argparse.Namespace


class HelpWanted(Exception):
    """-h or --help was given, for the command (or the first word of some) in `words`; "" is the whole program."""

    def __init__(self, words: str) -> None:
        super().__init__(words)
        self.words = words


class VersionWanted(Exception):
    """--version was given."""


class UsageError(Exception):
    """The command line is wrong. `words` is the command as far as it was understood."""

    def __init__(self, words: str, message: str) -> None:
        super().__init__(message)
        self.words = words


def parse(argv: Sequence[str]) -> Call:
    """Raises UsageError, HelpWanted or VersionWanted."""
    top = _Parser("")
    top.add_argument("--version", action=_Version, nargs=0)
    for argument in GLOBALS:
        _add(top, None, argument)
    top.add_argument("words", nargs=argparse.REMAINDER)
    arguments = top.parse_args(argv)
    command, rest = _command(arguments.words)
    del arguments.words
    parser = _Parser(command.words)
    for argument in command.arguments:
        _add(parser, command, argument)
    for argument in GLOBALS:
        _add(parser, None, argument, default=argparse.SUPPRESS)
    parser.parse_args(rest, arguments)
    for argument in command.arguments:
        if argument.insist and not getattr(arguments, argument.name):
            raise UsageError(command.words, argument.insist.format_map(vars(arguments)))
    return Call(command, arguments)


def choices(command: Command | None, argument: Argument) -> tuple[str, ...]:
    param = command.param(argument) if command is not None else None
    return param.choices if param is not None and not argument.switch else ()


class _Parser(argparse.ArgumentParser):
    """argparse that raises instead of printing and leaving."""

    def __init__(self, words: str) -> None:
        # A width of its own: to ask for the terminal's, argparse imports shutil and its compressors, in every run.
        super().__init__(prog=words, add_help=False, allow_abbrev=False,
                         formatter_class=lambda prog: argparse.HelpFormatter(prog, width=80))
        self.words = words
        self.add_argument("-h", "--help", action=_Help, nargs=0)

    def error(self, message: str) -> NoReturn:
        raise UsageError(self.words, message)


class _Help(argparse.Action):
    def __call__(self, parser: argparse.ArgumentParser, *_: Any, **__: Any) -> None:
        raise HelpWanted(parser.prog)


class _Version(argparse.Action):
    def __call__(self, *_: Any, **__: Any) -> None:
        raise VersionWanted


def _add(parser: _Parser, command: Command | None, argument: Argument, default: Any = None) -> None:
    settings: dict[str, Any] = {"default": default}
    if argument.switch:
        settings["action"] = "store_true"
    else:
        settings["metavar"] = argument.metavar or None
        if choices(command, argument):
            settings["choices"] = choices(command, argument)
        if command is not None and (param := command.param(argument)) is not None:
            settings["type"] = _reader(param.kind)
    if argument.flags:
        parser.add_argument(*argument.flags, dest=argument.name, **settings)
        return
    if argument.optional:
        settings["nargs"] = "?"
    parser.add_argument(argument.name, **settings)


def _reader(kind: str) -> Any:
    """What reads a value on the command line; its rules beyond the type are the operation's."""
    if kind == "moment":
        return units.moment
    types = KINDS[kind].types
    return float if float in types else int if types == (int,) else str


def _command(words: Sequence[str]) -> tuple[Command, Sequence[str]]:
    """The command that `words` begin with, and the rest of them."""
    if not words:
        raise UsageError("", "no command given")
    for count in (2, 1):
        command = BY_WORDS.get(" ".join(words[:count]))
        if command is not None:
            return command, words[count:]
    first = words[0]
    group = [known for known in BY_WORDS if known.startswith(f"{first} ")]
    if group and len(words) > 1 and words[1] in ("-h", "--help"):
        raise HelpWanted(first)
    if group:
        seconds = " or ".join(known.split()[1] for known in group)
        raise UsageError(first, f"must be followed by {seconds}")
    near = difflib.get_close_matches(first, {known.split()[0]: None for known in BY_WORDS}, n=1)
    hint = f"; did you mean {near[0]}?" if near else ""
    raise UsageError("", f"there is no command {first!r}{hint}")
