"""What is installed without a clone: the wheel, as its backend builds it from these sources."""

import zipfile
from email.parser import Parser
from pathlib import Path

import pytest

import rolelens as rl

ROOT = Path(__file__).parents[1]
PACKAGE = ROOT / "src" / "rolelens"


@pytest.fixture
def wheel(tmp_path: Path) -> zipfile.ZipFile:
    backend = pytest.importorskip("hatchling.builders.wheel")
    (built,) = backend.WheelBuilder(str(ROOT)).build(directory=str(tmp_path), versions=["standard"])
    return zipfile.ZipFile(built)


def test_the_wheel_holds_the_package_with_its_data_and_nothing_else(wheel: zipfile.ZipFile) -> None:
    held = {name for name in wheel.namelist() if not name.startswith("rolelens-")}
    files = (path for path in PACKAGE.rglob("*") if path.is_file() and path.suffix != ".pyc")
    assert held == {f"rolelens/{path.relative_to(PACKAGE)}" for path in files}
    for needed in ("py.typed", "data/rolelens.js", "data/rolelens.css", "data/report.html",
                   "data/mini.jsonl", "data/prompts/base.json"):  # fmt: skip
        assert f"rolelens/{needed}" in held
    roles = [name for name in held if name.startswith("rolelens/data/prompts/roles/")]
    assert len(roles) == len(rl.load_roles())


def test_the_wheel_says_what_it_is(wheel: zipfile.ZipFile) -> None:
    info = f"rolelens-{rl.__version__}.dist-info"
    about = Parser().parsestr(wheel.read(f"{info}/METADATA").decode())
    assert about["Version"] == rl.__version__
    assert about["License-Expression"] == "MIT"
    assert {"widget", "endpoints", "ray"} <= set(about.get_all("Provides-Extra"))
    assert "rolelens = rolelens.cli:app" in wheel.read(f"{info}/entry_points.txt").decode()
    assert f"{info}/licenses/LICENSE" in wheel.namelist()
