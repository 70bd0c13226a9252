"""A module keeps its name: ``import rolelens.x`` is the module, never a function of that name."""

import importlib
import importlib.util
import pkgutil
from importlib import resources
from types import ModuleType

import rolelens


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
