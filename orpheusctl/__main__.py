"""The program: reads the command line, hands the command to its module, turns every end into an exit code.

It knows no command. Modules are imported when their command is asked for, so that `run` starts fast.
"""

import importlib
import os
import sys

from orpheusctl import parser
from orpheusctl.output import Output
from orpheusd import __version__
from orpheusd.errors import CODES, OrpheusError

USAGE_EXIT = CODES["invalid-request"].exit_code
INTERRUPTED_EXIT = CODES["cancelled"].exit_code
FAULT_EXIT = CODES["internal"].exit_code
#: What a shell reports for a program that SIGPIPE has ended.
PIPE_EXIT = 141


def main(argv: list[str] | None = None) -> int:
    """Runs one command and returns its exit code. Prints no traceback of its own but for a fault of its own."""
    prog = "orpheus" if sys.argv[0].endswith("/orpheus") else "orpheusctl"
    try:
        status = _main(sys.argv[1:] if argv is None else argv, prog)
        if sys.stdout is not None:
            sys.stdout.flush()
        return status
    except KeyboardInterrupt:
        return INTERRUPTED_EXIT
    except BrokenPipeError:
        _abandon_stdout()
        return PIPE_EXIT
    except OSError as error:
        _abandon_stdout()
        print(f"{prog}: {error}", file=sys.stderr)
        return FAULT_EXIT


def _main(argv: list[str], prog: str) -> int:
    output = Output(prog)
    try:
        call = parser.parse(argv)
    except parser.HelpWanted as wanted:
        from orpheusctl import manual  # noqa: PLC0415

        output.stdout.write(manual.help_text(prog, wanted.words))
        return 0
    except parser.VersionWanted:
        output.line(f"orpheusctl {__version__}")
        return 0
    except parser.UsageError as error:
        return _wrong_usage(output, error)
    arguments = call.arguments
    output = Output(prog, json_wanted=arguments.json, colour=not arguments.no_color,
                    verbose=getattr(arguments, "verbose", None) or False)
    try:
        status: int = importlib.import_module(f"orpheusctl.{call.command.module}").execute(call, output)
    except OrpheusError as error:
        output.error(error)
        return error.outcome.exit_code
    return status


def _wrong_usage(output: Output, error: parser.UsageError) -> int:
    from orpheusctl import manual  # noqa: PLC0415
    from orpheusctl.commands import BY_WORDS  # noqa: PLC0415

    named = f"{output.prog} {error.words}".rstrip()
    command = BY_WORDS.get(error.words)
    output.note(f"{named}: {error}")
    if command is not None:
        output.note(manual.usage(output.prog, command))
    output.note(f"Try `{named} --help`.")
    return USAGE_EXIT


def _abandon_stdout() -> None:
    """Lets the interpreter's own flush at exit go nowhere instead of failing again."""
    devnull = os.open(os.devnull, os.O_WRONLY)
    os.dup2(devnull, 1)
    os.close(devnull)


if __name__ == "__main__":
    sys.exit(main())
