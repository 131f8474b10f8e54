"""The page in a real browser: it loads without errors or requests, draws, follows clicks, and fits a phone and paper."""

import json
import re

import pytest

from psyfast.metrics.config import MetricsConfig
from psyfast.report.build import build_report
from psyfast.report.files import write_page
from psyfast.report.html_page import page_html, script_json
from tests.report.synthetic_runs import CONDITIONS, MANY, PAIR, participants, write_report_run

HOSTILE = (
    "<script>window.hacked = 1</script>",
    "</script><img src=x onerror='window.hacked = 1'>",
    "\"'`;window.hacked=1//",
    "\u202eevil\u202c \u0000\u0007\n",
    "a" * 5000,
    "{{constructor.constructor('window.hacked=1')()}} ${window.hacked=1}",
)

POINTS = ".chart svg .mark-symbol.role-mark:not(.cut_low_marks, .cut_high_marks) path"


def categories(folder):
    path = folder / "categories.csv"
    path.write_text("experiment,category\nstudy00,Memory\nstudy01,Risky Choice; Memory\nstudy02,Reasoning\n")
    return path


@pytest.fixture(scope="module")
def two(tmp_path_factory):
    """A page of two models with everything that can be drawn; and the report it was made of."""
    folder = tmp_path_factory.mktemp("two")
    run = write_report_run(folder / "run")
    report = build_report([run], MetricsConfig(categories=categories(folder)))
    write_page(report, folder / "report.html")
    return report, folder / "report.html"


class Loaded:
    """A page in the browser, with everything that went wrong there and everything it asked for."""

    def __init__(self, browser, path, width=1100, height=900):
        self.errors, self.requests = [], []
        self.page = browser.new_page(viewport={"width": width, "height": height})
        self.page.on("console", lambda message: self.errors.append(message.text) if message.type == "error" else None)
        self.page.on("pageerror", lambda error: self.errors.append(str(error)))
        self.page.on("request", lambda request: self.requests.append(request.url))
        self.page.goto(path.as_uri())
        self.page.wait_for_selector("html[data-ready=yes]")

    def marks(self, name):
        """How many marks (points, bars, lines, areas, tiles) a figure shows."""
        return self.page.locator(f"#{name} .chart svg g[class*='mark-'][class*='role-mark'] :is(path, rect)").count()

    def wait_for_count(self, selector, count):
        """Until so many elements are there: figures are drawn anew a moment after a click."""
        self.page.wait_for_function("([s, n]) => document.querySelectorAll(s).length === n", arg=[selector, count])


@pytest.fixture
def load(chromium):
    pages = []

    def loader(path, **size):
        pages.append(Loaded(chromium, path, **size))
        return pages[-1]

    yield loader
    for loaded in pages:
        loaded.page.close()


def test_every_figure_is_drawn_without_errors_or_requests(two, load):
    report, path = two
    loaded = load(path)
    assert all(figure.chart is not None for figure in report.figures)
    assert {figure.name for figure in report.figures if loaded.marks(figure.name) == 0} == set()
    assert loaded.errors == []
    assert loaded.requests == [path.as_uri()]
    ids = loaded.page.evaluate("[...document.querySelectorAll('[id]')].map(element => element.id)")
    assert len(ids) == len(set(ids))


def test_marks_are_as_many_as_rows(two, load):
    _, path = two
    loaded = load(path)
    points = loaded.page.locator(f"#forest {POINTS}")
    assert points.count() == 4 + 2  # experiments, and the mean under both estimands
    tiles = loaded.page.locator("#categories .chart svg .mark-rect.role-mark path")
    assert tiles.count() == 2 * 4  # one pair and the mean; three categories and none


def test_a_click_on_a_row_filters_figures_and_transcripts(two, load):
    _, path = two
    loaded = load(path)
    loaded.page.locator("#forest .chart svg .role-axis-label text", has_text="study02").click()
    assert loaded.page.locator("select[data-choice=experiment]").input_value() == "study02"
    options = loaded.page.locator("#transcript-choice option").all_inner_texts()
    assert options and all(option.startswith("study02 · ") for option in options)
    loaded.page.locator("#learning summary").click()
    loaded.wait_for_count("#learning tbody tr", 2 * 10)
    assert all("study02" in row for row in loaded.page.locator("#learning tbody tr").all_inner_texts())
    loaded.wait_for_count(f"#forest {POINTS}[opacity='0.18']", 3)
    loaded.page.locator("#forest .chart svg .role-axis-label text", has_text="study02").click()  # once more: all again
    assert loaded.page.locator("select[data-choice=experiment]").input_value() == ""


def test_a_click_on_a_legend_chooses_the_model(two, load):
    _, path = two
    loaded = load(path)
    best = loaded.page.locator("#forest-nll .shown strong").inner_text()
    other = next(model for model in PAIR if model != best)
    loaded.page.locator("#calibration .chart svg .role-legend-label text").get_by_text(other, exact=True).click()
    assert loaded.page.locator("#forest-nll .shown strong").inner_text() == other
    assert other in loaded.page.locator("#transcript-state").inner_text()
    loaded.wait_for_count(f"#nll {POINTS}[opacity='0.18']", 1)
    loaded.page.keyboard.press("Escape")
    assert loaded.page.locator("#forest-nll .shown strong").inner_text() == best


def test_a_click_on_a_point_chooses_its_model(two, load):
    _, path = two
    loaded = load(path)
    loaded.page.locator("#template .chart svg .mark-symbol.role-mark path").first.click()
    assert loaded.page.locator("select[data-choice=model]").input_value() in PAIR


def test_conditions_and_comparisons_follow_the_keyboard(two, load):
    _, path = two
    loaded = load(path)
    before = loaded.page.locator("#transcript-state").inner_text()
    loaded.page.locator("select[data-choice=condition]").focus()
    loaded.page.keyboard.press("ArrowDown")
    assert loaded.page.locator("#transcript-state").inner_text() != before
    assert loaded.page.locator("#transcript-state strong").nth(1).inner_text() == sorted(CONDITIONS)[0]
    comparison = f"{PAIR[0]}: plain → chat"
    loaded.page.locator("#forest select").select_option(comparison)
    assert loaded.page.locator("#forest select").input_value() == comparison


def test_transcripts_are_cut_where_the_responses_are(two, load):
    report, path = two
    loaded = load(path)
    place = loaded.page.locator("#transcript")
    transcript = report.page.browser.transcripts[0]
    assert place.inner_text().strip() == "".join(transcript["pieces"]).strip()
    assert place.locator("mark").all_inner_texts() == list(transcript["pieces"][1::2])
    model = loaded.page.locator("#transcript-state strong").first.inner_text()
    nlls = transcript["nll"][f"{model}\nplain"]
    assert place.locator("mark").first.get_attribute("title") == f"{nlls[0]:.2f} nats"
    grounds = place.locator("mark").evaluate_all("marks => marks.map(mark => mark.style.background)")
    darkest = max(range(len(nlls)), key=nlls.__getitem__)
    assert len(set(grounds)) > 3 and grounds[darkest] != grounds[min(range(len(nlls)), key=nlls.__getitem__)]
    loaded.page.locator("#transcript-numbers").check()
    assert place.locator("mark").first.inner_text().endswith(f"{nlls[0]:.2f}")


@pytest.mark.parametrize("models", [PAIR, MANY], ids=["2 models", "30 models"])
def test_nothing_is_wider_than_a_phone(models, tmp_path, load):
    run = write_report_run(tmp_path / "run", models, ("plain", "persona"), participants(names=HOSTILE))
    write_page(build_report([run]), tmp_path / "report.html")
    loaded = load(tmp_path / "report.html", width=360, height=740)
    assert loaded.page.evaluate("document.documentElement.scrollWidth") == 360
    wide = (
        "[...document.querySelectorAll('figure, .chart svg')].filter(e => e.getBoundingClientRect().right > 360).length"
    )
    assert loaded.page.evaluate(wide) == 0
    assert loaded.errors == []


def test_hostile_names_are_shown_and_do_nothing(tmp_path, load):
    people = participants(num_studies=len(HOSTILE), names=HOSTILE, studies=HOSTILE)
    for person in people:
        person["text"] += HOSTILE[0] + HOSTILE[1]
    models = ("<b>Qwen2-7B", "</script><script>window.hacked=1</script>".replace("/", "∕"))
    run = write_report_run(tmp_path / "run", models, ("plain", "persona"), people)
    write_page(build_report([run]), tmp_path / "report.html")
    loaded = load(tmp_path / "report.html")
    assert loaded.page.evaluate("window.hacked") is None
    assert loaded.errors == [] and len(loaded.requests) == 1
    assert loaded.page.locator("img").count() == 0
    options = loaded.page.locator("select[data-choice=experiment] option").all_inner_texts()
    assert HOSTILE[0] in options and max(map(len, options)) <= 42
    assert not any("\u202e" in option for option in options)
    loaded.page.locator("select[data-choice=experiment]").select_option(HOSTILE[0])
    assert HOSTILE[1] in loaded.page.locator("#transcript").inner_text()
    assert loaded.page.evaluate("window.hacked") is None


def test_paper_has_every_figure(two, load, tmp_path):
    report, path = two
    loaded = load(path)
    loaded.page.pdf(path=tmp_path / "report.pdf", format="A4")
    assert (tmp_path / "report.pdf").read_bytes().startswith(b"%PDF")
    loaded.page.emulate_media(media="print")
    assert not loaded.page.locator("#choices").is_visible() and not loaded.page.locator("#browser").is_visible()
    assert all(loaded.page.locator(f"#{figure.name} .chart svg").is_visible() for figure in report.figures)


def test_the_page_asks_for_nothing_and_its_data_are_json(two):
    report, _ = two
    text = page_html(report.page)
    assert "default-src 'none'" in text
    assert not re.search(r"<(script|link|img|iframe)[^>]+(src|href)=", text.split("<script>")[0])
    data = re.search(r'<script id="report-data" type="application/json">(.*?)</script>', text, re.DOTALL)[1]
    assert set(json.loads(data)["figures"]) == {figure.name for figure in report.figures}


def test_script_json_cannot_end_its_element():
    value = {"</script><!--": "&\u2028<"}
    text = script_json(value)
    assert not set("<>&\u2028") & set(text)
    assert json.loads(text) == value


def test_the_same_runs_make_the_same_page(two, tmp_path):
    report, _ = two
    again = build_report(report.metrics.runs, report.metrics.config)
    assert page_html(again.page) == page_html(report.page)
