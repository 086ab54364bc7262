"""Help of man-page quality for every command, and the reference page docs/cli.md, from the same rows.

Written here and not by argparse, whose layout changes with the version of Python. It prints only when run as a
program: `python -m orpheusctl.manual > docs/cli.md`.
"""

import textwrap
from collections.abc import Iterable

from orpheusctl.commands import BY_WORDS, COMMANDS, GLOBALS, MEANINGS, Argument, Command
from orpheusctl.parser import choices
from orpheusd.errors import CODES

WIDTH = 96
#: Where the text beside an option begins.
COLUMN = 24

#: Every command that asks the daemon may end so.
_DAEMON_CODES = ("permission-denied", "unreachable", "internal")

_HELP = Argument("help", flags=("-h", "--help"), switch=True, help="show this text")
_VERSION = Argument("version", flags=("--version",), switch=True, help="print the version")


def overview(prog: str) -> str:
    """What `orpheusctl --help` prints."""
    parts = [
        f"{prog} - deploy, run and look after agents kept warm by orpheusd",
        f"usage: {prog} [--socket PATH] [--no-color] COMMAND [ARGUMENTS]\n       {prog} COMMAND --help",
        _section("COMMANDS", (_beside(command.words, command.summary) for command in COMMANDS)),
        _section("OPTIONS", (_option(None, argument) for argument in (*GLOBALS, _VERSION, _HELP))),
        _section("EXAMPLES", (
            f"  $ {prog} deploy ./my-agent",
            f"  $ {prog} run my-agent '{{\"query\": \"step 1\"}}' --session user-123",
            '  {"turn": 1}')),
        _section("OUTPUT", [_paragraph(
            "The answer goes to stdout and nothing else does; progress, context and errors go to stderr. On a "
            "terminal answers are drawn as tables; otherwise they are separated by tabs, without units. --json "
            "prints what the HTTP route prints, errors included.")]),
        _section("EXIT CODES", _exit_codes(CODES)),
    ]
    return "\n\n".join(parts) + "\n"


def group_help(prog: str, first: str) -> str:
    """What `orpheusctl session --help` prints."""
    group = [command for command in COMMANDS if command.words.startswith(f"{first} ")]
    lines = (_beside(command.words, command.summary) for command in group)
    usage = f"usage: {prog} {first} {'|'.join(command.words.split()[1] for command in group)} --help"
    return f"{usage}\n\n{_section('COMMANDS', lines)}\n"


def command_help(prog: str, command: Command) -> str:
    """What `orpheusctl COMMAND --help` prints."""
    positional = [argument for argument in command.arguments if not argument.flags]
    options = [argument for argument in command.arguments if argument.flags]
    parts = [f"{prog} {command.words} - {command.summary}", usage(prog, command)]
    parts.append(_section("DESCRIPTION", (_paragraph(text) for text in command.description.split("\n"))))
    if positional:
        parts.append(_section("ARGUMENTS", (_option(command, argument) for argument in positional)))
    parts.append(_section("OPTIONS", (_option(command, argument) for argument in (*options, *GLOBALS, _HELP))))
    parts.append(_section("EXAMPLES" if len(command.examples) > 1 else "EXAMPLE", _examples(prog, command)))
    codes = command.codes if command.module == "validate" else (*command.codes, "invalid-request", *_DAEMON_CODES)
    parts.append(_section("EXIT CODES", _exit_codes(codes)))
    return "\n\n".join(parts) + "\n"


def help_text(prog: str, words: str) -> str:
    command = BY_WORDS.get(words)
    if command is not None:
        return command_help(prog, command)
    return group_help(prog, words) if words else overview(prog)


def usage(prog: str, command: Command) -> str:
    """The synopsis, with every option."""
    words = []
    for argument in (*(a for a in command.arguments if not a.flags), *(a for a in command.arguments if a.flags)):
        text = " ".join(filter(None, (*argument.flags[:1], _value(command, argument))))
        needed = not argument.optional and (not argument.flags or bool(argument.insist))
        words.append(text if needed else f"[{text}]")
    head = f"usage: {prog} {command.words} "
    lines, line = [], head
    for word in words:
        if len(line) + len(word) > WIDTH:
            lines.append(line.rstrip())
            line = " " * len(head)
        line += word + " "
    return "\n".join([*lines, line.rstrip()])


def page() -> str:
    """docs/cli.md."""
    prog = "orpheusctl"
    parts = ["# orpheusctl", "Also installed as `orpheus`. Each section is what the command's `--help` prints.",
             f"```text\n{overview(prog)}```"]
    for command in COMMANDS:
        parts.append(f"## {command.words}")
        parts.append(f"```text\n{command_help(prog, command)}```")
    return "\n\n".join(parts) + "\n"


def _section(name: str, lines: Iterable[str]) -> str:
    return "\n".join([name, *lines])


def _paragraph(text: str) -> str:
    return textwrap.fill(text, WIDTH, initial_indent="  ", subsequent_indent="  ", break_on_hyphens=False,
                         break_long_words=False)


def _beside(left: str, right: str) -> str:
    head = f"  {left}".ljust(COLUMN)
    if len(head) > COLUMN - 1 and not head.endswith(" "):
        return f"{head}\n{_beside('', right)}"
    return textwrap.fill(right, WIDTH, initial_indent=head, subsequent_indent=" " * COLUMN, break_on_hyphens=False,
                         break_long_words=False)


def _option(command: Command | None, argument: Argument) -> str:
    value = _value(command, argument)
    left = ", ".join(f"{flag} {value}".rstrip() for flag in argument.flags) if argument.flags else value
    if len(argument.flags) > 1 and value:
        left = f"{', '.join(argument.flags)} {value}"
    param = command.param(argument) if command is not None else None
    text = argument.help or (param.help if param is not None else "")
    if param is not None and param.default not in (None, False, {}) and not argument.switch:
        text += f"; {param.default} unless given"
    return _beside(left, text)


def _value(command: Command | None, argument: Argument) -> str:
    if argument.switch:
        return ""
    return argument.metavar or "|".join(choices(command, argument)) or argument.name.upper()


def _examples(prog: str, command: Command) -> Iterable[str]:
    for number, example in enumerate(command.examples):
        if number:
            yield ""
        if example.says:
            yield f"  # {example.says}"
        yield f"  $ {example.command.replace('orpheusctl', prog)}"
        if example.prints:
            yield f"  {example.prints}"


def _exit_codes(codes: Iterable[str]) -> Iterable[str]:
    """One line an exit code, with the errors that end in it."""
    said: dict[int, list[str]] = {}
    for code in dict.fromkeys(codes):
        if code in MEANINGS:
            said.setdefault(CODES[code].exit_code, []).append(f"{MEANINGS[code]} ({code})")
    yield _beside("0", "done")
    for number in sorted(said):
        yield _beside(str(number), "; ".join(said[number]))


if __name__ == "__main__":
    print(page(), end="")
