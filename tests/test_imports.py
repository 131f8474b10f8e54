"""Who may import whom (docs/architecture.md): a walk over every module's imports holds the layers."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

PACKAGE = Path(__file__).resolve().parents[1] / "psyfast"

# A module may import those of layers further down, and of its own layer where that is one concept.
LAYERS = [
    {"__main__"},
    {"cli", "integrations"},
    {"api", "catalogue", "doctor", "forecast", "scorer"},
    {"comparison"},
    {"scoring"},
    {"model_run"},
    {"checked_transcripts", "parts"},
    {"preparation", "scan"},
    {"rows", "inputs", "process_memory"},
    {"data", "model.load", "engine", "store", "report", "metrics", "config", "footprint"},
    {"model.decoder"},
    {"plan", "model.families", "ops", "kernels"},
    {"devices", "model.traits"},
    {"model.rope"},
    {"errors", "stopwatch", "study"},
]

# Within the broad layer and the core, exactly these arrows.
ALLOWED = {
    "engine": {"plan", "model.traits", "model.decoder", "ops"},
    "footprint": {"plan", "model.traits", "ops"},
    "model.load": {"model.families", "model.traits", "model.rope", "ops", "errors"},
    "model.decoder": {"ops"},
    "model.families": {"model.traits"},
    "model.traits": {"model.rope"},
    "model.rope": set(),
    "plan": {"errors"},
    "ops": {"kernels", "errors"},
    "data": {"errors", "study"},
    "store": {"errors"},
    "metrics": {"store", "errors", "study"},
    "report": {"metrics", "store", "errors"},
    "config": {"errors"},
    "kernels": set(),
    "errors": set(),
    "study": set(),
}

CORE = {
    "engine",
    "footprint",
    "plan",
    "model.families",
    "model.traits",
    "model.rope",
    "model.decoder",
    "ops",
    "kernels",
}
CORE_LIBRARIES = {"torch", "numpy"}
KERNELS = PACKAGE.parent / "kernels" / "triton"  # imported as psyfast.kernels.triton, and by nothing but a GPU backend
WITHOUT_TORCH = ("metrics", "report", "store", "cli")


def modules():
    for path in sorted(PACKAGE.rglob("*.py")):
        name = ".".join(path.relative_to(PACKAGE).with_suffix("").parts)
        yield path, "" if name == "__init__" else name.removesuffix(".__init__")


def unit_of(name):
    """The layer unit of a dotted name inside the package: `ops.cpu` → `ops`, `model.load.gguf` → `model.load`."""
    parts = name.split(".")
    return ".".join(parts[:2]) if parts[0] == "model" and len(parts) > 1 else parts[0]


def imports_of(path):
    """Names imported anywhere in a file, lazily or for types alone included."""
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: relative import"
            yield node.module
            yield from (
                f"{node.module}.{alias.name}" for alias in node.names if node.module in ("psyfast", "psyfast.model")
            )


def internal(path):
    for name in imports_of(path):
        inner = name.removeprefix("psyfast").lstrip(".")
        if name.split(".")[0] == "psyfast" and inner and not inner.startswith(("__version__", "_native")):
            yield unit_of(inner)


def layer_of(unit):
    found = [i for i, layer in enumerate(LAYERS) if unit in layer]
    assert found, f"'{unit}' stands in no layer"
    return found[0]


@pytest.mark.parametrize(
    ("path", "name"), [pytest.param(*m, id=m[1] or "psyfast") for m in modules() if m[1] not in ("", "model")]
)
def test_nothing_imports_leftwards(path, name):
    unit = unit_of(name)
    for imported in internal(path):
        if imported in (unit, "model"):
            continue
        if unit in ALLOWED:
            assert imported in ALLOWED[unit], f"psyfast.{name} imports psyfast.{imported}"
        else:
            assert layer_of(imported) > layer_of(unit), f"psyfast.{name} imports psyfast.{imported}"


@pytest.mark.parametrize(
    ("path", "name"), [pytest.param(*m, id=m[1]) for m in modules() if m[1] and unit_of(m[1]) in CORE]
)
def test_the_core_needs_torch_numpy_and_the_standard_library_alone(path, name):
    for imported in imports_of(path):
        root = imported.split(".")[0]
        assert root in CORE_LIBRARIES | {"psyfast"} | sys.stdlib_module_names, f"psyfast.{name} imports {root}"


@pytest.mark.parametrize("path", sorted(KERNELS.glob("*.py")), ids=lambda path: path.stem)
def test_triton_kernels_need_torch_triton_and_each_other_alone(path):
    for imported in imports_of(path):
        root = imported.split(".")[0]
        assert root in {"torch", "triton"} | sys.stdlib_module_names or imported.startswith("psyfast.kernels."), (
            imported
        )


@pytest.mark.parametrize(
    ("path", "name"), [pytest.param(*m, id=m[1]) for m in modules() if m[1] and unit_of(m[1]) in WITHOUT_TORCH]
)
def test_tables_and_figures_never_import_torch(path, name):
    assert "torch" not in {imported.split(".")[0] for imported in imports_of(path)}


def test_the_walk_sees_what_it_should(tmp_path):
    sample = tmp_path / "x.py"
    sample.write_text(
        "def f():\n    from psyfast.ops import cpu\n    import psyfast.model.load.config\n    from psyfast import engine\n"
    )
    assert set(internal(sample)) == {"ops", "model.load", "engine"}


@pytest.mark.parametrize(
    "module", ["psyfast", "psyfast.api", "psyfast.cli", "psyfast.metrics.summary", "psyfast.report.score_table"]
)
def test_importing_these_loads_neither_torch_nor_transformers(module):
    code = f"import sys, {module}; print([m for m in ('torch', 'transformers', 'datasets') if m in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
