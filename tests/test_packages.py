"""The house: who imports whom, what is packed, and what an import costs. Reads the sources."""

import ast
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
ROOMS = ("edgejudge", "export", "models", "runtime")
# Room -> rooms it may import. The leaf modules import nothing of ours and are open to all.
MAY_IMPORT = {
    "edgejudge": {"edgejudge", "runtime", "models"},
    "runtime": {"runtime", "models"},
    "export": {"export", "models"},
    "models": {"models"},
}
LEAVES = {
    "edgejudge.clue_settings",
    "edgejudge.bundle",
    "edgejudge.errors",
    "edgejudge.file_bytes",
    "edgejudge.hub_cache",
    "edgejudge.lazy",
    "edgejudge.manifest",
    "edgejudge.manifest_check",
    "edgejudge.mil_file",
    "edgejudge.strict_json",
    "edgejudge.onnx_files",
    "edgejudge.printable",
    "edgejudge.report_card",
    "edgejudge.wire",
}
# The gate and its command: the only modules that see both sides, and only inside functions.
MAY_IMPORT_EXPORT = {
    "edgejudge/combinations.py",
    "edgejudge/fidelity.py",
    "edgejudge/gate_set.py",
    "edgejudge/commands/export.py",
    "edgejudge/relevance.py",
    "edgejudge/target_gate.py",
}
HEAVY = {
    "torch",
    "onnx",
    "onnx_ir",
    "transformers",
    "safetensors",
    "huggingface_hub",
    "coremltools",
}
# Room -> outside packages it never imports; what goes through Optimum takes its transformers along.
NEVER = {
    "edgejudge": HEAVY,
    "runtime": HEAVY,
    "models": HEAVY | {"onnxruntime"},
    "export": {"onnxruntime", "transformers"},
}


# Packages inside a room. The others are flat.
INSIDE = {
    "edgejudge": (
        "answering",
        "bulk",
        "calibrating",
        "commands",
        "evaluation",
        "profiling",
        "watching",
    ),
    "runtime": ("scheduling",),
}
# The extra `eval`: asked for by name where it is needed, so that a missing one is one sentence.
EXTRA = {"scipy", "sklearn", "matplotlib", "pyarrow"}


def sources(room: str) -> list[Path]:
    """Python files of a room: its folder and the packages inside it."""
    folders = [ROOT / room, *(ROOT / room / name for name in INSIDE.get(room, ()))]
    return [path for folder in folders for path in sorted(folder.glob("*.py"))]


def imports(path: Path) -> list[tuple[str, int, bool]]:
    """(module, line, at module level and at run time) of every import statement."""
    found: list[tuple[str, int, bool]] = []

    def visit(node: ast.AST, top: bool) -> None:
        if isinstance(node, ast.If) and "TYPE_CHECKING" in ast.dump(node.test):
            top = False
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda):
            top = False
        if isinstance(node, ast.Import):
            found.extend((alias.name, node.lineno, top) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}:{node.lineno}: import by its full name"
            assert node.module is not None
            found.append((node.module, node.lineno, top))
            # `from edgejudge import export` names the room only in what it imports.
            if node.module == "edgejudge":
                names = {f"edgejudge.{alias.name}" for alias in node.names}
                found.extend((name, node.lineno, top) for name in names if room_of(name) in ROOMS)
        for child in ast.iter_child_nodes(node):
            visit(child, top)

    visit(ast.parse(path.read_text(encoding="utf-8")), True)
    return found


def room_of(module: str) -> str | None:
    parts = module.split(".")
    if parts[0] != "edgejudge":
        return None
    return parts[1] if len(parts) > 1 and parts[1] in ROOMS else "edgejudge"


@pytest.mark.parametrize("room", ROOMS)
def test_import_direction(room: str) -> None:
    wrong = []
    for path in sources(room):
        name = path.relative_to(ROOT).as_posix()
        below = name.removeprefix("edgejudge/").removesuffix(".py").replace("/", ".")
        module = f"edgejudge.{below}"
        for imported, line, top in imports(path):
            target = room_of(imported)
            if target is None:
                allowed = name == "export/relevance.py" and imported == "transformers" and not top
                if imported.split(".")[0] in NEVER[room] and not allowed:
                    wrong.append(f"{name}:{line} imports {imported}")
            elif module in LEAVES:
                if imported not in LEAVES:
                    wrong.append(f"{name}:{line} is a leaf and imports {imported}")
            elif target == "export" and room == "edgejudge":
                if name not in MAY_IMPORT_EXPORT or top:
                    wrong.append(f"{name}:{line} imports {imported} (only lazily, in the gate)")
            elif target not in MAY_IMPORT[room] and imported not in LEAVES:
                wrong.append(f"{name}:{line} imports {imported}")
    assert wrong == []


def test_the_direction_test_sees_what_it_must(tmp_path: Path) -> None:
    path = tmp_path / "x.py"
    path.write_text("from edgejudge import export\ndef f():\n    import edgejudge.runtime.engine\n")
    assert imports(path) == [
        ("edgejudge", 1, True),
        ("edgejudge.export", 1, True),
        ("edgejudge.runtime.engine", 3, False),
    ]


def test_every_folder_with_code_is_packed() -> None:
    config = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
    packed = config["tool"]["setuptools"]
    folders = {packed["package-dir"][name] for name in packed["packages"]}
    inside = {f"{room}/{name}" for room, names in INSIDE.items() for name in names}
    assert folders == set(ROOMS) | inside
    with_init = {
        path.parent.relative_to(ROOT).as_posix()
        for room in ROOMS
        for path in (ROOT / room).rglob("__init__.py")
    }
    assert with_init == folders, "a package inside a room is missing from the wheel"


@pytest.mark.parametrize("room", ROOMS)
def test_files_say_what_they_are_for(room: str) -> None:
    for path in sources(room):
        lines = path.read_text(encoding="utf-8").splitlines()
        assert len(lines) <= 400, f"{path}: {len(lines)} lines; split it"
        assert lines and lines[0].startswith('"""'), f"{path}: begins without a docstring"


def modules_after(statement: str) -> set[str]:
    script = f"{statement}\nimport sys\nprint(*sorted(sys.modules))"
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return {name.split(".")[0] for name in done.stdout.split()}


def test_the_packages_of_the_extra_are_asked_for_by_name() -> None:
    wrong = [
        f"{path.relative_to(ROOT).as_posix()}:{line} imports {imported}"
        for path in sources("edgejudge")
        for imported, line, _ in imports(path)
        if imported.split(".")[0] in EXTRA
    ]
    assert wrong == [], "use edgejudge.evaluation.extra.needed"


def test_what_judges_loads_nothing_that_measures() -> None:
    script = (
        "import sys, edgejudge.judge, edgejudge.answering.comparing, edgejudge.calibration\n"
        "print(*(name for name in sys.modules if name.startswith('edgejudge.evaluation')))"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert done.stdout.split() == []


def test_import_edgejudge_is_light() -> None:
    loaded = modules_after("import edgejudge; dir(edgejudge); edgejudge.PolicyError")
    assert not loaded & (HEAVY | {"numpy", "onnxruntime", "PIL", "yaml", "rich", "tokenizers"})


def test_the_command_line_is_light_until_it_runs() -> None:
    loaded = modules_after("import edgejudge.cli")
    assert not loaded & (HEAVY | {"numpy", "onnxruntime", "PIL", "yaml", "rich", "tokenizers"})


def test_judging_imports_no_export_tool_and_no_hub() -> None:
    # tokenizers depends on huggingface_hub; loading a tokenizer must not import it.
    loaded = modules_after(
        "import edgejudge.judge, edgejudge.runtime, edgejudge.policy_yaml, tokenizers"
    )
    assert not loaded & HEAVY


def test_the_public_names_are_there() -> None:
    import edgejudge

    for name in edgejudge.__all__:
        assert getattr(edgejudge, name) is not None
    assert set(dir(edgejudge)) == set(edgejudge.__all__)
    with pytest.raises(AttributeError):
        edgejudge.nothing  # noqa: B018


def test_the_guide_lists_every_error_code_and_note() -> None:
    from edgejudge.images import CODES

    guide = (ROOT / "POLICIES.md").read_text(encoding="utf-8")
    for code, meaning in CODES.items():
        assert f"| `{code}` | {meaning} |" in guide
    guides = guide + (ROOT / "JUDGING.md").read_text(encoding="utf-8")
    codes = set()
    for path in sources("edgejudge"):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Call) and getattr(node.func, "id", "") == "Note":
                if isinstance(node.args[0], ast.Constant):
                    codes.add(node.args[0].value)
    assert len(codes) > 10
    assert [code for code in sorted(codes) if f"`{code}`" not in guides] == []
