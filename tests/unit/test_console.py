"""The runner of documents must see the commands and must be able to fail."""

import os
from pathlib import Path

import pytest

from tests.console import Step, matches, run, steps

DOCUMENT = """\
Text.

```console
$ one
out
more
$ two \\
    --flag
$ three
```

<!-- not run: it needs the moon -->
```console
$ never
```

```python
$ not a command
```
"""


def test_commands_come_with_their_output() -> None:
    assert list(steps(DOCUMENT)) == [Step("one", "out\nmore"), Step("two \\\n    --flag", ""), Step("three", "")]


@pytest.mark.parametrize(("printed", "shown", "same"), [
    ("hello\n", "hello", True),
    ("hello\n", "hullo", False),
    ('{"a":1}', '{"a": 1}', True),
    ('{"a":2}', '{"a": 1}', False),
    ('{"a":1,"b":2}', '{"a": 1}', True),
    ('{"b":2}', '{"a": 1}', False),
    ('{"a":[1,2]}', '{"a": [1]}', False),
    ('{"id":"r-01ab","at":0.25}', '{"id": "r-77…", "at": 1.5}', True),
    ('{"id":"w-01ab-1"}', '{"id": "r-77…"}', False),
    ('{"turn":1}', '{"turn": true}', False),
    ("a\nb\nc\n", "a\nc", True),
    ("a\nb\nc\n", "c\na", False),
    ("a\nb\n", "a\nb\nc", False),
    ('id: 1\ndata: {"b":2,"a":"r-1"}', 'id: 1\n\ndata: {"a":"r-2…"}', True),
    ('id: 1\ndata: {"a":2}', 'id: 1\n\ndata: {"a":1}', False),
    ("anything", "", True),
])
def test_output_is_compared(printed: str, shown: str, same: bool) -> None:
    assert matches(printed, shown) is same


def test_a_wrong_document_is_found_out(tmp_path: Path) -> None:
    run(Step("echo right", "right"), os.environ, tmp_path)
    with pytest.raises(AssertionError, match="The document shows"):
        run(Step("echo right", "wrong"), os.environ, tmp_path)
    with pytest.raises(AssertionError, match="exit code 3"):
        run(Step("exit 3", ""), os.environ, tmp_path)
