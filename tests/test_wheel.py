"""The wheel, as a user installs it: complete, small, and working outside the checkout."""

import os
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
MAX_WHEEL_BYTES = 40_000_000


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    # Built from a copy: setuptools writes its build folder into the source tree.
    source = tmp_path_factory.mktemp("source")
    skipped = shutil.ignore_patterns("__pycache__", "work", "checkpoint", "*.egg-info")
    for room in ("edgejudge", "export", "models", "runtime"):
        shutil.copytree(ROOT / room, source / room, ignore=skipped)
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, source / name)
    out = tmp_path_factory.mktemp("wheel")
    command = [sys.executable, "-m", "pip", "wheel", "--no-deps", "--no-build-isolation"]
    done = subprocess.run(
        [*command, "--no-index", "-w", str(out), str(source)], capture_output=True, text=True
    )
    assert done.returncode == 0, done.stdout + done.stderr
    (path,) = out.glob("*.whl")
    return path


def test_everything_is_in_it_and_nothing_else(wheel: Path) -> None:
    names = set(zipfile.ZipFile(wheel).namelist())
    for room in ("edgejudge", "export", "models", "runtime"):
        inside = "edgejudge" if room == "edgejudge" else f"edgejudge/{room}"
        for path in (ROOT / room).glob("*.py"):
            assert f"{inside}/{path.name}" in names
    for path in (ROOT / "edgejudge" / "evaluation").glob("*.py"):
        assert f"edgejudge/evaluation/{path.name}" in names
    assert {"edgejudge/py.typed", "edgejudge/policies/stickers.yaml"} <= names
    for kind in ("bundle", "samples"):
        shipped = {f"edgejudge/models/nano/{kind}/{p.name}" for p in data_files(kind)}
        assert shipped <= names
    tops = {name.split("/")[0] for name in names}
    assert {top for top in tops if not top.endswith(".dist-info")} == {"edgejudge"}
    assert not [name for name in names if "nano" in name and name.endswith(".py")]


def data_files(kind: str) -> list[Path]:
    return [path for path in (ROOT / "models" / "nano" / kind).glob("*") if path.is_file()]


def test_it_is_small(wheel: Path) -> None:
    assert wheel.stat().st_size < MAX_WHEEL_BYTES


def test_it_works_outside_the_checkout(wheel: Path, tmp_path: Path) -> None:
    site = tmp_path / "site"
    zipfile.ZipFile(wheel).extractall(site)
    script = """if True:
        import edgejudge, edgejudge.cli, edgejudge.judge, edgejudge.runtime, edgejudge.models
        import edgejudge.evaluation.run
        import importlib.util
        assert importlib.util.find_spec("edgejudge.export") is not None
        for room in ("export", "models", "runtime"):
            spec = importlib.util.find_spec(room)
            assert spec is None, f"{room} is importable by its bare name: {spec}"
        from edgejudge.policy import load_policy
        assert load_policy("stickers").rules
        print(edgejudge.__file__)
        print(edgejudge.judge.default_bundle())
    """
    env = {**os.environ, "PYTHONPATH": str(site)}
    done = subprocess.run(
        [sys.executable, "-c", script], env=env, cwd=tmp_path, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    home, bundle = done.stdout.splitlines()
    assert Path(home) == site / "edgejudge" / "__init__.py"
    assert Path(bundle) == site / "edgejudge" / "models" / "nano" / "bundle"
