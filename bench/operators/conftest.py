"""Which cases are run: the first shape at every ISA level, others at the level in use; options choose more or fewer."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch
from cases import PROBLEMS, Problem
from shapes import SHAPES

from psyfast.ops import cpu
from psyfast.ops.records import Lane

OPTIONS = {
    "--operators": (list(PROBLEMS), "operators"),
    "--lanes": ([lane.value for lane in Lane], "arithmetic"),
    "--shapes": (["135M", "0.6B"], f"models' sizes, of {', '.join(SHAPES)}"),
    "--tokens": (["64", "2000"], "batches of so many tokens, 20000 as well"),
    "--isas": ([], "ISA levels, at every shape"),
}


def pytest_addoption(parser: pytest.Parser) -> None:
    for name, (default, text) in OPTIONS.items():
        shown = ",".join(default) or "the level in use, and every level at the first shape"
        parser.addoption(name, metavar="A,B", default=None, help=f"{text}, as a comma list. [{shown}]")
    parser.addoption("--num-threads", type=int, default=None, help="Threads. [all cores]")


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    if "problem" not in metafunc.fixturenames:
        return
    operators, lanes, shapes, tokens, isas = (_chosen(metafunc.config, name) for name in OPTIONS)
    with_isa = "isa" in metafunc.fixturenames
    in_use = cpu.isa_name()
    params = [
        (operator, Lane(lane), shape, int(num_tokens), *([isa] if with_isa else []))
        for shape in shapes
        for num_tokens in tokens
        for operator in operators
        for lane in lanes
        for isa in ((isas or (cpu.available_isas() if shape == shapes[0] else [in_use])) if with_isa else [""])
    ]
    ids = ["-".join(getattr(value, "value", str(value)) for value in param) for param in params]
    problems = [param[:4] for param in params]
    names = "problem,isa" if with_isa else "problem"
    values = list(zip(problems, [param[4] for param in params], strict=True)) if with_isa else problems
    metafunc.parametrize(names, values, ids=ids, indirect=["problem"])


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Case by case: what is compared is timed at about the same moment, and operands are built once."""
    problems = [getattr(item, "callspec", None) and item.callspec.params.get("problem") for item in items]
    places = {problem: place for place, problem in reversed(list(enumerate(problems)))}
    items[:] = [item for _, item in sorted(zip(problems, items, strict=True), key=lambda pair: places[pair[0]])]


def _chosen(config: pytest.Config, name: str) -> list[str]:
    """An option's values, checked where they are names."""
    default, _ = OPTIONS[name]
    given = config.getoption(name)
    if given is None:
        return default
    chosen = given.split(",")
    known = {"--tokens": None, "--isas": cpu.available_isas(), "--shapes": list(SHAPES)}.get(name, default)
    bad = [v for v in chosen if (v not in known if known is not None else not (v.isdigit() and int(v) > 0))]
    if bad:
        expected = ", ".join(known) if known is not None else "positive whole numbers"
        raise pytest.UsageError(f"{name}: '{bad[0]}' is not known here; choose from {expected}")
    return chosen


@pytest.fixture(scope="session", autouse=True)
def num_threads(request: pytest.FixtureRequest) -> int:
    """The number of threads of everything that is timed."""
    wanted = request.config.getoption("--num-threads")
    if wanted is not None:
        torch.set_num_threads(wanted)
    return torch.get_num_threads()


_built: dict[tuple[object, ...], Problem] = {}


@pytest.fixture
def problem(request: pytest.FixtureRequest) -> Iterator[Problem]:
    """The operands of a case; kept while consecutive benchmarks ask for the same."""
    if request.param not in _built:
        _built.clear()
        torch.manual_seed(0)
        operator, lane, shape, num_tokens = request.param
        _built[request.param] = PROBLEMS[operator](SHAPES[shape], lane, num_tokens)
    with torch.inference_mode():
        yield _built[request.param]
