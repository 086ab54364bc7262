"""The commands of orpheusctl: one row each, naming the operation it asks the daemon for.

The parser, every `--help` and docs/cli.md are made from these rows and the operations table: what a parameter
means, its choices and its type are said there, once. This file is data; it does nothing.
"""

from typing import NamedTuple

from orpheusd.operations import BY_NAME, Operation, Param


class Argument(NamedTuple):
    """A positional argument, or an option when it has `flags`.

    `param` is the parameter of the operation that it fills; `constant` what a switch fills it with. `insist` is
    what to say to a caller who left a needed switch out.
    """

    name: str
    param: str = ""
    flags: tuple[str, ...] = ()
    metavar: str = ""
    help: str = ""
    switch: bool = False
    constant: str = ""
    optional: bool = False
    insist: str = ""


class Example(NamedTuple):
    """What to type, what is printed, why."""

    command: str
    prints: str
    says: str = ""


class Command(NamedTuple):
    """A row. `words` follow `orpheusctl`; `operation` is "" for what is done without the daemon.

    `module` is the file of orpheusctl that carries it out; `one` the operation asked instead when the optional
    agent is named; `codes` the errors, of `orpheusd.errors`, that this command is likely to end with.
    """

    words: str
    operation: str
    description: str
    arguments: tuple[Argument, ...]
    examples: tuple[Example, ...]
    codes: tuple[str, ...] = ()
    module: str = "ask"
    one: str = ""
    about: str = ""

    @property
    def summary(self) -> str:
        return self.about or BY_NAME[self.operation].summary

    def asked_operation(self) -> Operation | None:
        return BY_NAME.get(self.operation)

    def param(self, argument: Argument) -> Param | None:
        """The row of the operations table that `argument` fills."""
        for name in (self.operation, self.one):
            for param in BY_NAME[name].params if name else ():
                if param.name == argument.param:
                    return param
        return None


NAME = Argument("agent", "agent", metavar="NAME")
JSON = Argument("json", flags=("--json",), switch=True, help="print the answer as JSON, as the HTTP route does")
VERBOSE = Argument("verbose", flags=("-v", "--verbose"), switch=True, help="say more on stderr")

#: Taken before the command and after it.
GLOBALS: tuple[Argument, ...] = (
    Argument("socket", flags=("--socket",), metavar="PATH",
             help="the daemon's control socket; else $ORPHEUS_SOCKET, else orpheus/ctl.sock in $XDG_RUNTIME_DIR (or "
                  "/run/user/UID), else /run/orpheus/ctl.sock"),
    Argument("no_color", flags=("--no-color",), switch=True,
             help="no colours on a terminal; $NO_COLOR does the same"),
)

#: What a run can end with.
_RUN_CODES = (
    "handler-failed", "unserialisable-result", "not-found", "session-busy", "context-not-warm", "invalid-request",
    "too-large", "worker-crashed", "overloaded", "session-queue-full", "draining", "quarantined", "timed-out",
    "cancelled")

COMMANDS: tuple[Command, ...] = (
    Command(
        "deploy", "deploy",
        "Packs the agent's folder, sends it to the daemon, and makes it the agent's next version. The version "
        "before serves until a worker of the new one has started; if none starts, nothing changes.\n"
        "Packing leaves out .git, __pycache__, .venv, *.pyc and what .orpheusignore names, one pattern a line: "
        "`*.log` anywhere, `data/` a folder, `/notes.txt` at the top only, `#` a comment. A link to a file of the "
        "folder is packed as that file; any other link is refused.\n"
        "Values for variables that agent.yaml names without one (`env: [OPENAI_API_KEY]`) are taken from the "
        "environment of this command. The steps (pack, upload, unpack, build, canary, switch) are shown on stderr.\n"
        "Ctrl-C leaves. Before the bundle is uploaded that is the end of it; after that the daemon goes on with the "
        "deploy.",
        (Argument("path", metavar="PATH", help="folder with an agent.yaml, or a .tar.gz of one"), VERBOSE, JSON),
        (Example("orpheusctl deploy ./my-agent", "deployed my-agent version 1 (isolation bwrap)"),
         Example("OPENAI_API_KEY=… orpheusctl deploy ./my-agent", "deployed my-agent version 2 (isolation bwrap)",
                 "a version that needs a secret")),
        ("handler-failed", "conflict", "too-large", "timed-out", "cancelled"),
        module="deploy", about="deploy a folder as an agent's next version"),
    Command(
        "undeploy", "undeploy",
        "Lets the agent's running runs finish, stops its workers and forgets its versions. Its workspace and logs "
        "stay, and a later deploy of the same name finds them, unless --purge is given.",
        (NAME, Argument("purge", "purge", flags=("--purge",), switch=True), JSON),
        (Example("orpheusctl undeploy my-agent", "undeployed my-agent; its workspace stays"),),
        ("not-found",)),
    Command(
        "validate", "",
        "Checks an agent's folder offline: every mistake of agent.yaml with its line, and that the module imports "
        "and the entrypoint exists. No daemon is needed and nothing is changed.",
        (Argument("path", metavar="PATH", help="folder with an agent.yaml"),
         JSON._replace(help="print what was found as JSON")),
        (Example("orpheusctl validate ./my-agent", "", "before a commit, or in CI"),),
        ("invalid-request", "cancelled"), module="validate", about="check an agent's folder without deploying it"),
    Command(
        "list", "agent.list",
        "Shows every agent: its current version, its state, how many workers it has and may have, and how many "
        "sessions, waiting and running runs. With NAME: that agent's settings and its workers, one a row.",
        (NAME._replace(optional=True, help="show this agent and its workers instead"), JSON),
        (Example("orpheusctl list --json | jq -r '.agents[].name'", "my-agent"),
         Example("orpheusctl list my-agent", "", "its workers: pid, state, sessions, memory")),
        ("not-found",), one="agent.show"),
    Command(
        "run", "run",
        "Runs the agent's handler with the input and prints its result on stdout, as JSON: indented on a terminal, "
        "one line otherwise. With --session the run goes to the worker that holds that session's memory; what "
        "became of the memory (new, warm, spilled, restored, lost) is said on stderr, on a terminal or with -v, "
        "and always when it is spilled or lost.\n"
        "With --stream each piece of output is printed as a line of JSON when it comes, and the agent's own log "
        "lines go to stderr; the result follows as a last line unless it is nothing but the list of those pieces, "
        "or null after some. With --stream --json every line is an object with `event` (output, log, dropped, "
        "result, error) and `data`.\n"
        "Ctrl-C asks the daemon to cancel the run and waits for its end; a second Ctrl-C leaves at once. When this "
        "command is killed, or stdout is closed, the run goes on, unless --cancel-on-disconnect was given.\n"
        "With --async only the run's id is printed, as soon as the run is on the disk: from then on it is executed "
        "even if the daemon is killed before. `attach` waits for its end, `show` tells how it is.\n"
        "With --idempotency-key K the run is executed once, however often it is asked for with that key within 24 "
        "hours: whoever asks again gets the first run's answer. Another input, session or option under the same key "
        "is refused (conflict).",
        (NAME,
         Argument("input", optional=True, metavar="INPUT",
                  help="the input as JSON, - to read it from stdin, or @FILE to read it from a file; {} unless given"),
         Argument("session_id", "session_id", ("--session",), "ID"),
         Argument("affinity", "affinity", ("--affinity",)),
         Argument("overlap", "overlap", ("--overlap",)),
         Argument("require", "require", ("--require-warm",), switch=True, constant="warm"),
         Argument("timeout_s", "timeout_s", ("--timeout",), "S"),
         Argument("stream", "stream", ("--stream",), switch=True),
         Argument("detach", "detach", ("--async",), switch=True,
                  help="print the run's id as soon as the run is accepted for good, and leave"),
         Argument("idempotency_key", "idempotency_key", ("--idempotency-key",), "K"),
         Argument("cancel_on_disconnect", "cancel_on_disconnect", ("--cancel-on-disconnect",), switch=True),
         VERBOSE, JSON),
        (Example("orpheusctl run my-agent '{\"query\": \"step 1\"}' --session user-123", '{"turn": 1}'),
         Example("echo '{\"query\": \"step 2\"}' | orpheusctl run my-agent - --session user-123 | jq .turn", "2",
                 "input from a pipe, result to a pipe"),
         Example("orpheusctl run my-agent @question.json --stream", "", "output as it comes"),
         Example("orpheusctl run my-agent @question.json --async", "r-019a2b3c4d5e6f7a8b9c0d",
                 "not waited for; `orpheusctl attach` waits")),
        (*_RUN_CODES, "conflict"),
        module="run"),
    Command(
        "attach", "run.show",
        "Waits for the end of a run, however it was started and however long it takes, and then does as `run` does: "
        "prints its result, or its error with the same exit code. Ctrl-C leaves, and the run goes on.",
        (Argument("run_id", "run_id", metavar="RUN"), VERBOSE, JSON),
        (Example("orpheusctl attach r-019a2b3c4d5e6f7a8b9c0d", '{"turn": 1}'),), _RUN_CODES,
        module="attach", about="wait for a run's end and print its result"),
    Command(
        "retry", "run.retry",
        "Starts a new run with the input, session and agent of one that has ended, and waits for it as `run` does. "
        "Refused (conflict) while that run goes on, and when the run log has not kept its whole input.",
        (Argument("run_id", "run_id", metavar="RUN"), Argument("stream", "stream", ("--stream",), switch=True),
         VERBOSE, JSON),
        (Example("orpheusctl retry r-019a2b3c4d5e6f7a8b9c0d", '{"turn": 2}'),), (*_RUN_CODES, "conflict"),
        module="run"),
    Command(
        "cancel", "run.cancel",
        "Stops a run that is waiting or going on; whoever waits for it gets the error `cancelled`. Exits 1 when the "
        "run had already ended.",
        (Argument("run_id", "run_id", metavar="RUN"), JSON),
        (Example("orpheusctl cancel r-5f0c2a", "cancelled r-5f0c2a"),),
        ("not-found",)),
    Command(
        "runs", "run.list",
        "Lists runs from the run log, newest first: when, which agent and session, how each ended and how long it "
        "took. --before takes the `seq` of the last row to get the next page. WHEN is RFC 3339 "
        "(2026-01-31T12:00:00Z), seconds since 1970, or an age: 90s, 15m, 1h, 7d.",
        (NAME._replace(optional=True, help="only runs of this agent"),
         Argument("limit", "limit", ("-n", "--limit"), "N"), Argument("state", "state", ("--state",), "S"),
         Argument("session", "session", ("--session",), "ID"), Argument("source", "source", ("--source",), "DOOR"),
         Argument("since", "since", ("--since",), "WHEN"), Argument("until", "until", ("--until",), "WHEN"),
         Argument("before", "before", ("--before",), "SEQ"), JSON),
        (Example("orpheusctl runs my-agent -n 20 --state failed --since 1h", ""),
         Example("orpheusctl runs --session user-123 --json | jq -r '.runs[].context'", "warm"))),
    Command(
        "show", "run.show",
        "Shows everything the run log has of one run: its input, result or error, the agent's traceback, its "
        "worker, its session and what memory it met. With --wait S it first waits up to S seconds for its end.",
        (Argument("run_id", "run_id", metavar="RUN"), Argument("wait", "wait", ("--wait",), "S"), JSON),
        (Example("orpheusctl show r-01a2028", ""),), ("not-found",)),
    Command(
        "why", "run.why",
        "Tells in plain words why that worker executed a run: what it waited for, which rule placed it, and what "
        "became of its session's memory. Known of the latest 10000 runs since the daemon started.",
        (Argument("run_id", "run_id", metavar="RUN"), JSON),
        (Example("orpheusctl why r-01a2028", "It started at once. w-3fa9c1-2 is the session's home …"),),
        ("not-found",)),
    Command(
        "restart", "restart",
        "Starts new workers of the same version and lets the old ones finish their runs. Sessions lose what their "
        "workers held in memory; the workspace stays.",
        (NAME, JSON), (Example("orpheusctl restart my-agent", "restarted my-agent (version 3)"),),
        ("not-found", "conflict")),
    Command(
        "rollback", "rollback",
        "Makes an older version the current one again, as a deploy of it would: it serves when a worker of it has "
        "started, and if none starts nothing changes. Workspace and saved session state stay as they are. The five "
        "newest versions that have served are kept beside the current one. `orpheusctl list NAME` shows when one was "
        "rolled back by itself, because its workers kept dying in its first minute.",
        (NAME, Argument("version", "version", metavar="VERSION", optional=True), JSON),
        (Example("orpheusctl rollback my-agent", "rolled my-agent back from version 3 to 2"),
         Example("orpheusctl rollback my-agent 1", "rolled my-agent back from version 2 to 1")),
        ("not-found", "conflict", "handler-failed")),
    Command(
        "sessions", "session.list",
        "Shows the agent's sessions: id, home (the worker that holds its memory), runs finished, running and "
        "waiting, and for how long it has been idle.",
        (NAME, Argument("limit", "limit", ("-n", "--limit"), "N"), JSON),
        (Example("orpheusctl sessions my-agent -n 10", ""),), ("not-found",)),
    Command(
        "session show", "session.show",
        "Shows one session of an agent: its home, its runs, and for how long it has been idle.",
        (NAME, Argument("session_id", "session_id", metavar="ID"), JSON),
        (Example("orpheusctl session show my-agent user-123", ""),), ("not-found",)),
    Command(
        "session end", "session.end",
        "Ends a session: its worker forgets it, and its next run is `new`.",
        (NAME, Argument("session_id", "session_id", metavar="ID"), JSON),
        (Example("orpheusctl session end my-agent user-123", "ended user-123"),), ("not-found",)),
    Command(
        "logs", "logs",
        "Prints the latest lines that the agent's workers wrote to stdout and stderr: time, worker, run, session, "
        "stream and text, separated by tabs when stdout is not a terminal. Control characters are shown as \\x1b; "
        "with --json, each line is a row as JSON, with the exact text.\n"
        "-f goes on with new lines until Ctrl-C (exit code 130) or until the daemon stops (69) or reloads (75).",
        (NAME, Argument("follow", "stream", ("-f", "--follow"), switch=True),
         Argument("limit", "limit", ("-n", "--lines"), "N"), Argument("run_id", "run_id", ("--run",), "ID"),
         Argument("session_id", "session_id", ("--session",), "ID"), JSON._replace(help="print each line as JSON")),
        (Example("orpheusctl logs my-agent -n 20 --session user-123", ""), Example("orpheusctl logs my-agent -f", "")),
        ("not-found", "cancelled", "draining"), module="logs"),
    Command(
        "stats", "agent.stats",
        "Shows an agent's counts since the daemon started, and what its processes use now.",
        (NAME, JSON), (Example("orpheusctl stats my-agent --json | jq .queue.depth", "0"),), ("not-found",)),
    Command(
        "status", "status",
        "Shows the daemon: version, uptime, isolation and the reason for it, directories, HTTP address, agents, the "
        "run log. What somebody should look at (runs are refused because the disk is full, a damaged run log was put "
        "aside) is said on stderr as well, a line each, and is the list `problems` with --json; so is each wall that "
        "this host cannot give, `isolation_weaknesses`.",
        (JSON,), (Example("orpheusctl status", ""),)),
    Command(
        "doctor", "doctor",
        "Checks what this box can enforce: user namespaces, AppArmor, bubblewrap, control groups, pidfd, seccomp, "
        "SQLite, disk, HTTP address, control socket. Each is ok, weaker (it works, and holds less) or missing; of "
        "what is not ok it is said what that means and how to mend it. A daemon that runs tells what is in force for "
        "itself; when none answers, the findings are those for a daemon that you would start here.\n"
        "Exits 0 when nothing is missing, else 1.",
        (JSON,),
        (Example("orpheusctl doctor", "ok      bubblewrap: bubblewrap works here with every namespace"),
         Example("orpheusctl doctor --json | jq -r '.findings[] | select(.state == \"missing\").check'", "")),
        module="doctor"),
    Command(
        "reload", "reload",
        "Makes the daemon execute itself anew, as it is on disk now, with the settings as they are now: for an "
        "upgrade, or after a change of the settings file. Its pid, its sockets, its connections, the workers and what "
        "they remember stay; who asks for something meanwhile waits. Answers when the new daemon serves.\n"
        "The settings and the program are tried first: when they would not start, this is refused (conflict) and "
        "nothing changes. SIGHUP does the same; then the log has the answer. A run that is not over within the "
        "daemon's stop_timeout_s goes on, and its caller is told `draining`: `orpheusctl attach RUN` waits for its "
        "end.",
        (JSON,), (Example("orpheusctl reload", "reloaded: version 0.1.0, pid 4711, callers waited 0.6 s"),),
        ("conflict",)),
    Command(
        "workspace path", "workspace.info",
        "Prints the path of the agent's workspace on this machine and nothing else.",
        (NAME, JSON), (Example('ls "$(orpheusctl workspace path my-agent)"', ""),), ("not-found",),
        about="print where an agent's workspace is"),
    Command(
        "workspace info", "workspace.info",
        "Shows the workspace's path, how many files it holds, and their size.",
        (NAME, JSON), (Example("orpheusctl workspace info my-agent", ""),), ("not-found",)),
    Command(
        "workspace clean", "workspace.clean",
        "Deletes every file in the agent's workspace, but what `workspace.session` has saved: that goes with its "
        "session (`session end`), or with `undeploy --purge`. There is no way back, so --force must be said.",
        (NAME, Argument("force", flags=("--force",), switch=True, help="yes, delete everything",
                        insist="deletes every file in the workspace of {agent} but the state of its sessions; say "
                               "--force to do it"), JSON),
        (Example("orpheusctl workspace clean my-agent --force",
                 "removed 12 files (3.4 MB) from /var/lib/orpheus/workspaces/my-agent"),),
        ("not-found", "conflict")),
)

BY_WORDS: dict[str, Command] = {command.words: command for command in COMMANDS}

#: What each error code means at a prompt; the numbers come from `orpheusd.errors.CODES`.
MEANINGS: dict[str, str] = {
    "invalid-request": "wrong usage, input or name",
    "too-large": "over a limit of size",
    "permission-denied": "not allowed, or a server not to be trusted",
    "not-found": "no such agent, run or session",
    "conflict": "not possible now",
    "session-busy": "the session has a run, and --overlap is reject",
    "context-not-warm": "the session's memory is not there, and --require-warm was given",
    "handler-failed": "the agent's own code failed; its traceback is on stderr",
    "unserialisable-result": "the result is not JSON",
    "worker-crashed": "the worker died during the run",
    "overloaded": "the agent's queue is full",
    "session-queue-full": "the session's queue is full",
    "draining": "the daemon or the agent is stopping, or the daemon reloads",
    "quarantined": "refused for a while: its runs kept killing workers",
    "timed-out": "not done in time",
    "cancelled": "cancelled, or Ctrl-C",
    "unreachable": "the daemon did not answer",
    "internal": "a fault of Orpheus",
}
