"""A module keeps its name: ``import rolelens.x`` is the module, never a function of that name."""

import ast
import importlib
import importlib.util
import inspect
import pkgutil
import subprocess
import sys
from importlib import resources
from types import ModuleType

import pytest

import rolelens

HEAVY = "torch transformers transformer_lens plotly pandas scipy sklearn datasets".split()


def modules() -> list[str]:
    return [module.name for module in pkgutil.walk_packages(rolelens.__path__, "rolelens.")]


def imported() -> dict[str, ModuleType]:
    return {name: importlib.import_module(name) for name in modules()}


def test_a_submodule_is_an_attribute_of_its_package() -> None:
    known = imported()
    for name, module in known.items():
        parent, _, child = name.rpartition(".")
        package = known.get(parent, rolelens)
        assert getattr(package, child) is module, f"{name} is hidden by another object"


def test_public_names_are_no_module_names() -> None:
    known = imported()
    for name, package in {"rolelens": rolelens, **known}.items():
        for public in getattr(package, "__all__", ()):
            value = getattr(package, public)
            module = known.get(f"{name}.{public}")
            hidden = module is not None and value is not module
            assert not hidden, f"{name}.{public} is also a module"


def test_public_names_are_listed_once() -> None:
    for name, package in {"rolelens": rolelens, **imported()}.items():
        public = list(getattr(package, "__all__", ()))
        assert len(set(public)) == len(public), name


def test_types_are_published() -> None:
    assert (resources.files("rolelens") / "py.typed").is_file()


def test_public_names_are_what_type_checkers_read() -> None:
    tree = ast.parse(inspect.getsource(rolelens))
    typed, *_ = (node for node in tree.body if isinstance(node, ast.If))
    found = {}
    for node in typed.body:
        assert isinstance(node, ast.ImportFrom)
        for name in node.names:
            part = importlib.import_module(node.module or "")
            found[name.name] = getattr(part, name.name)
    assert sorted(found) == sorted(rolelens.__all__)
    for name, value in found.items():
        assert getattr(rolelens, name) is value
    assert set(rolelens.__all__) < set(dir(rolelens))


def test_a_name_that_there_is_not_is_an_attribute_error() -> None:
    with pytest.raises(AttributeError, match="'rolelens' has no attribute 'lode'"):
        _ = rolelens.lode


def test_what_needs_no_model_imports_nothing_that_takes_seconds() -> None:
    code = f"""
import sys
import rolelens
from rolelens.cli import app
for line in ("--version", "--help", "roles", "models", "sweep --help", "prompts --help"):
    try:
        app(line.split())
    except SystemExit as end:
        assert end.code == 0, line
    assert not set({HEAVY}) & set(sys.modules), (line, set({HEAVY}) & set(sys.modules))
"""
    subprocess.run([sys.executable, "-c", code], check=True, capture_output=True)
