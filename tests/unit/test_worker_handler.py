"""Finding an agent's handler: every form it may have, and every way it may be unusable."""

import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from orpheusd.worker.handler import UnusableHandler, load
from orpheusd.worker.launch import Setup

HANDLERS = Path(__file__).resolve().parents[1] / "handlers"


@pytest.fixture(autouse=True)
def _as_in_a_worker(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    before = set(sys.modules)
    monkeypatch.syspath_prepend(str(HANDLERS))
    yield
    for name in set(sys.modules) - before:
        if getattr(sys.modules[name], "__file__", None) and str(sys.modules[name].__file__).startswith(str(HANDLERS)):
            del sys.modules[name]


def setup(module: str = "entrypoints", entrypoint: str = "handler", **changes: Any) -> Setup:
    facts: dict[str, Any] = {
        "agent": "probe", "version": 1, "module": module, "entrypoint": entrypoint, "concurrency": 1,
        "preload": False, "env": {}, "code_dir": str(HANDLERS), "workspace_dir": "/workspace",
        "result_limit_bytes": 1, "orphan_ttl_s": 1.0, "isolation": "none", **changes}
    return Setup(**facts)


@pytest.mark.parametrize(("entrypoint", "form"), [
    ("sync", "sync"), ("coroutine", "async"), ("generator", "generator"), ("async_generator", "async-generator"),
    ("callable_object", "sync"), ("async_callable", "async"), ("async_generator_callable", "async-generator"),
    ("bound_method", "async"), ("partial", "sync"), ("async_partial", "async"), ("built_in", "sync"),
    ("any_arguments", "sync"), ("defaulted", "sync"), ("CallableObject", None), ("hidden_coroutine", "sync"),
])
def test_every_form_is_recognised(entrypoint: str, form: str | None) -> None:
    if form is None:
        with pytest.raises(UnusableHandler, match="must take one argument"):
            load(setup(entrypoint=entrypoint))
        return
    found = load(setup(entrypoint=entrypoint))
    assert found.form == form
    assert found.is_async == form.startswith("async")


@pytest.mark.parametrize("module", ["entrypoints", "entrypoints.py"])
def test_a_module_may_be_named_as_a_file(module: str) -> None:
    assert load(setup(module, "sync")).function(1) == 1


def test_a_module_may_have_dots() -> None:
    assert load(setup("package.inner.agent")).function(1) == ["package.inner.agent", 1]


@pytest.mark.parametrize(("module", "entrypoint", "says"), [
    ("entrypoints", "missing", "module 'entrypoints' has no 'missing'; define it"),
    ("entrypoints", "not_callable", "'not_callable' in module 'entrypoints' is a dict, which cannot be called"),
    ("entrypoints", "no_argument", "must take one argument, the input: it is no_argument()"),
    ("entrypoints", "keyword_only", "must take one argument, the input: it is keyword_only(*, input_data)"),
    ("nowhere", "handler", "there is no module 'nowhere': the agent's folder has no nowhere.py"),
    ("nowhere.deeper", "handler", "the agent's folder has no nowhere/deeper.py"),
])
def test_what_is_unusable_says_what_to_do(module: str, entrypoint: str, says: str) -> None:
    with pytest.raises(UnusableHandler) as refused:
        load(setup(module, entrypoint))
    assert says in str(refused.value)


@pytest.mark.parametrize("entrypoint", ["sync", "generator", "partial"])
def test_only_async_handlers_share_a_worker(entrypoint: str) -> None:
    with pytest.raises(UnusableHandler, match=r"concurrency is 2.*make it `async def`"):
        load(setup(entrypoint=entrypoint, concurrency=2))


@pytest.mark.parametrize("entrypoint", ["coroutine", "async_generator", "async_callable"])
def test_async_handlers_share_a_worker(entrypoint: str) -> None:
    assert load(setup(entrypoint=entrypoint, concurrency=2)).is_async


def test_a_module_that_python_has_already_is_not_taken_for_the_agents(tmp_path: Path) -> None:
    (tmp_path / "json.py").write_text("def handler(x): return x\n")
    with pytest.raises(UnusableHandler, match="'json' has the name of a module that Python itself uses"):
        load(setup("json", code_dir=str(tmp_path)))


def test_the_packages_own_missing_import_is_not_called_a_missing_module() -> None:
    with pytest.raises(ModuleNotFoundError, match="a_package_that_is_not_there"):
        load(setup("import_missing"))
