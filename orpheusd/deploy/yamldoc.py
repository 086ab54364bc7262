"""Reads one YAML mapping and remembers where every value stood and how it was written.

It knows nothing of which keys exist. It refuses what a settings file has no use for and an attacker has:
aliases, tags, deep nesting, several documents, keys given twice, more than 64 KiB.
"""

import re
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import yaml

#: Where a value stands: the keys and list positions that lead to it.
Place = tuple[str | int, ...]

#: A hundred times the longest agent.yaml seen; parsing this much takes well under a second.
LIMIT_BYTES = 64 * 1024

#: The deepest documented setting is at 3; the composer recurses, so there must be an end.
LIMIT_DEPTH = 16

#: What may be repeated of a private key: a wrong name may hold its value (`KEY:secret`).
NAME_TO_SHOW = re.compile(r"[A-Za-z0-9_.-]{1,64}", re.ASCII)

#: Longer texts are cut in messages.
SHOWN_CHARACTERS = 60


class Problem(NamedTuple):
    """One mistake: its line (from 1), the dotted field, what was found, what is allowed, and the sentence."""

    line: int
    field: str
    found: str
    allowed: str
    message: str


class Unreadable(Exception):
    """The text is not a YAML mapping at all; nothing in it can be checked further."""

    def __init__(self, problem: Problem) -> None:
        super().__init__(problem.message)
        self.problem = problem


@dataclass(frozen=True, slots=True)
class Document:
    """A mapping as plain data.

    Invariant: every place in `data` is a key of `lines`, every scalar's place a key of `written`, which holds
    the characters as they stand in the file (without quotes). No problem shows what stands below a `private` key.
    """

    data: dict[str, Any] = field(default_factory=dict)
    lines: dict[Place, int] = field(default_factory=dict)
    written: dict[Place, str] = field(default_factory=dict)
    problems: list[Problem] = field(default_factory=list)
    private: frozenset[str] = frozenset()

    def named(self, place: Place) -> str:
        """`dotted`, but below a private key it is one name, and only what cannot be more than that."""
        if place and place[0] in self.private:
            kept = 2 if len(place) > 1 and (isinstance(place[1], int) or NAME_TO_SHOW.fullmatch(place[1])) else 1
            return dotted(place[:kept])
        return dotted(place)

    def line(self, place: Place) -> int:
        """The line of `place`, or of the nearest thing around it that exists."""
        while place and place not in self.lines:
            place = place[:-1]
        return self.lines.get(place, 1)


def read_document(text: str, private: frozenset[str] = frozenset()) -> Document:
    """The mapping in `text`; keys given twice are among its `problems`. Raises Unreadable.

    Neither shows a value that nobody has marked as text: `!word`, `*word` and `&word` may be somebody's password.
    """
    size_bytes = len(text.encode("utf-8", "surrogatepass"))
    if size_bytes > LIMIT_BYTES:
        raise _unreadable(1, f"{size_bytes} bytes", f"at most {LIMIT_BYTES} bytes", "is too long")
    loader = None
    try:
        loader = _Composer(text)
        node = loader.get_single_node()
    except yaml.MarkedYAMLError as error:
        raise _syntax(error) from error
    except yaml.reader.ReaderError as error:
        line = text.count("\n", 0, int(error.position)) + 1
        raise _unreadable(line, "a control character", "text", f"is not text: {error.reason}") from error
    except (ValueError, OverflowError) as error:
        # PyYAML reads numbers of any size: of a character (\\UFFFFFFFF), and of a YAML version
        line = int(loader.line) + 1 if loader is not None else 1
        raise _unreadable(line, "a number that is too large", "YAML", "holds the number of a character, or of a YAML "
                          "version, that does not exist") from error
    finally:
        if loader is not None:
            loader.dispose()
    if node is None or (isinstance(node, yaml.ScalarNode) and _scalar(node) is None):
        raise _unreadable(1, "nothing", "a mapping of keys to values", "is empty")
    if not isinstance(node, yaml.MappingNode):
        raise _unreadable(
            _line(node), kind(_scalar(node) if isinstance(node, yaml.ScalarNode) else []),
            "a mapping of keys to values", "does not hold `key: value` lines")
    document = Document(private=private)
    document.lines[()] = _line(node)
    document.data.update(_mapping(node, (), document))
    return document


def kind(value: Any) -> str:
    """What a value is, in words."""
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, dict):
        return "a mapping"
    if isinstance(value, list):
        return "a list"
    return "nothing" if value is None else shown(value)


def shown(value: Any) -> str:
    """`value` short and printable; text in quotes."""
    words = str(value)
    cut = words[:SHOWN_CHARACTERS] + ("…" if len(words) > SHOWN_CHARACTERS else "")
    if not isinstance(value, str):
        return cut
    return '"' + "".join(each if each.isprintable() else ascii(each)[1:-1] for each in cut) + '"'


class _Composer(yaml.SafeLoader):
    """Composes nodes only: no object is ever constructed from the text."""

    depth = 0

    def compose_node(self, parent: yaml.Node | None, index: int) -> yaml.Node | None:
        event = self.peek_event()  # type: ignore[no-untyped-call]
        if isinstance(event, yaml.AliasEvent):
            raise _refused(event, "aliases (values that begin with *) are not allowed; write the value out, in quotes "
                                  "if it begins so")
        self.depth += 1
        if self.depth > LIMIT_DEPTH:
            raise _refused(event, f"nested more than {LIMIT_DEPTH} deep")
        try:
            return super().compose_node(parent, index)
        finally:
            self.depth -= 1


#: Where PyYAML repeats a word of the file: after the two things that have names.
_QUOTED_WORD = re.compile(r"(tag handle|anchor) (?:'[^']*'|\"[^\"]*\")")

def _refused(event: yaml.Event, why: str) -> yaml.MarkedYAMLError:
    return yaml.MarkedYAMLError(problem=why, problem_mark=event.start_mark)  # type: ignore[arg-type]


_STANDARD = "tag:yaml.org,2002:"
_SCALARS = ("null", "bool", "int", "float", "str", "timestamp", "merge", "value")
_DECIMAL = re.compile(r"[-+]?(0|[1-9][0-9_]{0,18})", re.ASCII)


def _value(node: yaml.Node, place: Place, document: Document) -> Any:
    document.lines.setdefault(place, _line(node))
    if isinstance(node, yaml.MappingNode) and node.tag == f"{_STANDARD}map":
        return _mapping(node, place, document)
    if isinstance(node, yaml.SequenceNode) and node.tag == f"{_STANDARD}seq":
        return [_value(item, (*place, index), document) for index, item in enumerate(node.value)]
    if isinstance(node, yaml.ScalarNode) and node.tag.removeprefix(_STANDARD) in _SCALARS:
        document.written[place] = node.value
        return _scalar(node)
    name = document.named(place)
    document.problems.append(Problem(
        _line(node), name, "a tag", "a plain value",
        f"`{name}` has a tag (it begins with !); write a plain value without a tag, in quotes if it begins so"))
    return None


def _mapping(node: yaml.MappingNode, place: Place, document: Document) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for key_node, value_node in node.value:
        if not isinstance(key_node, yaml.ScalarNode):
            document.problems.append(Problem(
                _line(key_node), document.named(place), "a list or mapping as a key", "a word",
                "a key must be a word, not a list or a mapping"))
            continue
        key = str(key_node.value)
        inner = (*place, key)
        if key in found:
            document.problems.append(Problem(
                _line(key_node), document.named(inner), "given twice", "each key once",
                f"`{document.named(inner)}` is given twice, first on line {document.lines[inner]}; keep one"))
            continue
        document.lines[inner] = _line(key_node)
        found[key] = _value(value_node, inner, document)
    return found


def _scalar(node: yaml.ScalarNode) -> Any:
    """The value of a scalar. What YAML reads in a way nobody means (010 as 8, 1:30 as 90, dates) stays text."""
    text = str(node.value)
    tag = node.tag.removeprefix(_STANDARD)
    if tag == "null":
        return None
    if tag == "bool":
        return yaml.SafeLoader.bool_values.get(text.lower(), text)
    if tag == "int" and _DECIMAL.fullmatch(text):
        return int(text)
    if tag == "float" and ":" not in text:
        try:
            return float(text.replace("_", "").lower().replace(".inf", "inf").replace(".nan", "nan"))
        except ValueError:
            return text
    return text


def dotted(place: Place) -> str:
    """`("env", 2)` as "env[2]"; list positions count from 0 inside and from 1 for people."""
    words = ""
    for part in place:
        words += f"[{part + 1}]" if isinstance(part, int) else f".{part}" if words else part
    return "".join(each if each.isprintable() else ascii(each)[1:-1] for each in words)[:200]


def _line(node: yaml.Node) -> int:
    return int(node.start_mark.line) + 1


def _syntax(error: yaml.MarkedYAMLError) -> Unreadable:
    mark = error.problem_mark or error.context_mark
    said = _QUOTED_WORD.sub(r"\1", " ".join(part for part in (error.context, error.problem) if part))
    if "'\\t'" in said:
        said += " (indent with spaces, not tabs)"
    elif "expected a single document" in said:
        said = "holds more than one document; remove the second `---`"
    return _unreadable(mark.line + 1 if mark else 1, said, "YAML", f"is not YAML that can be read: {said}")


def _unreadable(line: int, found: str, allowed: str, message: str) -> Unreadable:
    return Unreadable(Problem(line, "", found, allowed, f"the file {message}"))
