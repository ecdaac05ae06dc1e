"""The page of results: its content, that it loads nothing else, its behavior in a browser."""

import base64
import dataclasses
import html.parser
import io
import itertools
import json
import re
from importlib import resources

import numpy as np
import pytest
from PIL import Image

import segjax
from segjax import results
from segjax.cli.main import main
from segjax.data import datasets
from segjax.predict import Predictions
from segjax.report import groups
from segjax.report import page as report
from support.browser import ENTER, LEFT, RIGHT, SPACE, TAB, chromium
from support.errors import command_refusal
from support.rows import CLASS_NAMES, OTHER, make_baseline, make_row, write_rows

NASTY = "<img src=x onerror=alert(1)>&\"'"
PALETTE = ((128, 128, 128), (128, 64, 128), (0, 128, 192))


def make_rows():
    return [
        make_row(0),
        make_row(1, confusion=OTHER, finished="2026-11-23T17:00:01+00:00"),
        make_row(0, weights=NASTY, confusion=OTHER, experiment=NASTY, name=NASTY, command=NASTY),
        make_baseline(),
        make_row(
            dataset="streetscenes",
            resolution=[72, 96],
            class_names=[*CLASS_NAMES[:2], NASTY],
            finished="2026-11-22T18:00:00+00:00",
        ),
    ]


def predicted(labels):
    """Return two random test images of 6x8, and a prediction of each by these methods."""
    rng = np.random.default_rng(0)
    examples = [
        {
            "image": rng.integers(0, 256, (6, 8, 3), np.uint8),
            "label": rng.choice(np.array([0, 1, 2, 255], np.uint8), (6, 8)),
            "id": f"image_{k}",
        }
        for k in range(2)
    ]
    split = datasets.SplitInfo(1, (1,) * 3, 0, (1,) * 3, (0.0,) * 3, (1.0,) * 3)
    info = datasets.DatasetInfo(
        "camvid", tuple(CLASS_NAMES), PALETTE, (0.0,) * 3, (1.0,) * 3, {"train": split}, (6, 8)
    )
    each = [(label, rng.integers(0, 3, (2, 6, 8)).astype(np.uint8)) for label in labels]
    return Predictions(info, examples, each)


@pytest.fixture(scope="module")
def settings(tmp_path_factory):
    file = tmp_path_factory.mktemp("rows") / "rows.jsonl"
    return groups.read_settings([write_rows(file, make_rows())])


@pytest.fixture(scope="module")
def text(settings):
    predictions = predicted([method.label for method in settings[0].methods[:2]])
    shown = [(predictions, ["all Road: a result row without run directory"])]
    shown.append((None, ["x: a result row without run directory"]))
    return report.page(settings, shown, [NASTY], "2026-11-24T00:00:00+00:00")


VOID_TAGS = {"meta", "link", "input", "br", "img"}


class Page(html.parser.HTMLParser):
    """The elements of a page, each with its tag, attributes, text and ancestors."""

    @dataclasses.dataclass
    class Element:
        tag: str
        attributes: dict
        path: tuple
        text: str = ""

    def __init__(self, text):
        super().__init__()
        self.elements, self.open = [], []
        self.feed(text)
        self.close()
        assert not self.open

    def handle_starttag(self, tag, attributes):
        names = [name for name, _ in attributes]
        assert len(set(names)) == len(names), (tag, names)
        element = self.Element(tag, dict(attributes), tuple(self.open))
        self.elements.append(element)
        if tag not in VOID_TAGS:
            self.open.append(element)

    def handle_startendtag(self, tag, attributes):
        self.elements.append(self.Element(tag, dict(attributes), tuple(self.open)))

    def handle_endtag(self, tag):
        assert self.open.pop().tag == tag

    def handle_data(self, text):
        for element in self.open:
            element.text += text

    def all(self, tag, **attributes):
        return [
            e
            for e in self.elements
            if e.tag == tag and all(e.attributes.get(k) == v for k, v in attributes.items())
        ]

    def tables(self):
        """Yield caption, headings and the cells of each row of every table."""
        for table in self.all("table"):
            inside = [e for e in self.elements if table in e.path]
            (caption,) = [e for e in inside if e.tag == "caption"]
            rows = [e for e in inside if e.tag == "tr"]
            cells = [[e for e in inside if row in e.path and e.tag in ("th", "td")] for row in rows]
            yield caption.text, cells[0], cells[1:]


@pytest.fixture(scope="module")
def page(text):
    return Page(text)


def test_every_row_is_listed_with_its_origin(page):
    found = {}
    for caption, heads, rows in page.tables():
        if caption.startswith("All rows"):
            names = [head.text for head in heads]
            for row in rows:
                line = dict(zip(names, (cell.text for cell in row), strict=True))
                found[line["run"], line["finished"]] = line
    assert len(found) == len(make_rows())
    for row in make_rows():
        line = found[row["name"], row["finished"]]
        assert line["G"] == f"{100 * row['global_accuracy']:.1f}"
        assert line["command"] == row["command"]
        assert line["config digest"] == (row["config_digest"] or "")
        assert line["seed"] == ("-" if row["seed"] is None else str(row["seed"]))
        assert line["device"] == row["device"]
        assert line["versions"] == "segjax 0.1.0"


def test_scores_are_means_over_the_seeds_and_sort_by_their_exact_values(page):
    tables = [table for table in page.tables() if table[0].startswith("Scores")]
    assert len(tables) == 2  # one for each setting
    _, heads, rows = tables[0]
    assert [head.attributes["aria-sort"] for head in heads].count("descending") == 1
    place = [head.text for head in heads].index("mIoU")
    assert heads[place].attributes == {
        "scope": "col",
        "data-kind": "number",
        "aria-sort": "descending",
    }
    values = [float(row[place].attributes["data-sort"]) for row in rows]
    assert values == sorted(values, reverse=True)
    by_name = {row[0].text: row[place] for row in rows}
    both = [row["mean_iou"] for row in make_rows()[:2]]
    cell = by_name["segnet_basic, class_weights=none"]
    assert float(cell.attributes["data-sort"]) == np.mean(both)
    assert cell.text == f"{100 * np.mean(both):.1f} ± {100 * np.std(both, ddof=1):.1f}"
    seeds = [head.text for head in heads].index("seeds")
    assert {row[0].text: row[seeds].attributes["data-sort"] for row in rows}["all Road"] == ""


def test_classes_have_a_column_each_in_two_tables(page):
    for kind in ("IoU", "Accuracy"):
        (table, _) = [t for t in page.tables() if t[0].startswith(f"{kind} of each class")]
        _, heads, rows = table
        assert [head.text for head in heads] == ["method", *CLASS_NAMES]
        values = {row[0].text: float(row[2].attributes["data-sort"]) for row in rows}
        expected = make_baseline()[f"per_class_{kind.lower()}"][1]
        assert values["all Road"] == pytest.approx(expected, abs=1e-15)


def test_names_from_users_are_shown_as_text_not_markup(page, text):
    assert not page.all("img")
    assert not [name for e in page.elements for name in e.attributes if name.startswith("on")]
    assert len(page.all("script")) == 1
    names = [cell.text for _, _, rows in page.tables() for row in rows for cell in row]
    assert NASTY in names
    (title,) = page.all("title")
    assert NASTY in title.text
    assert "<img" not in text


def test_the_page_loads_no_other_files(page, text):
    for element in page.elements:
        for name in ("src", "href", "action", "srcset", "data", "poster"):
            value = element.attributes.get(name, "#")
            assert value.startswith(("#", "data:")), (element.tag, name, value)
    assert "@import" not in text
    assert set(re.findall(r"url\((#|\w+:)", text)) == {"#", "data:"}
    assert re.findall(r"url\((?!#|data:)[^)]*\)", text) == []
    assert not re.search(r"(https?:|//[a-z])", re.sub(r"// the|// what", "", text))


def test_ids_are_unique_and_references_resolve(page, text):
    ids = [e.attributes["id"] for e in page.elements if "id" in e.attributes]
    assert len(set(ids)) == len(ids)
    used = {value for e in page.all("a") + page.all("use") for value in [e.attributes["href"][1:]]}
    used |= set(re.findall(r"url\(#([^)]+)\)", text))
    used |= {e.attributes["aria-labelledby"] for e in page.all("section")}
    assert used
    assert used <= set(ids)


def test_headings_go_down_by_one_and_every_control_has_a_name(page):
    levels = [int(e.tag[1]) for e in page.elements if re.fullmatch(r"h\d", e.tag)]
    assert levels[0] == 1
    assert levels.count(1) == 1
    assert all(b - a <= 1 for a, b in itertools.pairwise(levels))
    for control in page.all("input"):
        around = [e for e in control.path if e.tag == "label"]
        assert around[0].text.strip() or control.attributes.get("aria-label")
    for figure in page.all("svg"):
        assert figure.attributes["role"] == "img"
        assert figure.attributes["aria-label"]


def test_predictions_are_shown_and_missing_ones_explained(page):
    sliders = page.all("input", **{"class": "cut"})
    assert len(sliders) == 2 * 2
    said = [p.text for p in page.all("p", **{"class": "muted"})]
    assert "Not shown: all Road: a result row without run directory." in said
    assert said.count("None: result rows without run directories.") == 1
    assert said.count("No learning curves: result rows without run directories.") == 2


def test_configs_list_first_what_differs(page):
    ((_, heads, rows),) = [t for t in page.tables() if t[0].startswith("The fields that differ")]
    assert "loss.class_weights" in [head.text for head in heads]
    place = [head.text for head in heads].index("loss.class_weights")
    assert {row[place].text for row in rows} == {"none", NASTY, ""}
    folded = [
        e for e in page.all("details") if any(dt.text for dt in page.all("dt") if e in dt.path)
    ]
    assert len(folded) == len(make_rows()) - 1  # one for each method
    fields = [dt.text for dt in page.all("dt") if folded[0] in dt.path]
    assert set(fields[: fields.index("model.width")]) >= {"loss.class_weights"}


def luminance(color):
    values = [int(color[k : k + 2], 16) / 255 for k in (1, 3, 5)]
    linear = [v / 12.92 if v <= 0.04045 else ((v + 0.055) / 1.055) ** 2.4 for v in values]
    return float(np.dot([0.2126, 0.7152, 0.0722], linear))


def contrast(a, b):
    """Return the contrast ratio of WCAG 2, from 1 to 21."""
    low, high = sorted((luminance(a), luminance(b)))
    return (high + 0.05) / (low + 0.05)


@pytest.mark.parametrize("scheme", [0, 1], ids=["light", "dark"])
def test_text_and_controls_have_contrast_in_light_and_dark(scheme):
    css = (resources.files(segjax) / "report" / "page.html").read_text()
    blocks = re.findall(r":root \{(.*?)\}", css, re.DOTALL)
    assert len(blocks) == 2
    color = dict(re.findall(r"--(\w+): (#\w{6})", blocks[scheme]))
    for ground in ("paper", "head"):
        for name in ("ink", "muted", "accent"):
            assert contrast(color[name], color[ground]) >= 4.5, (name, ground)
    assert contrast(color["edge"], color["paper"]) >= 3
    # No text has a color of its own.
    own = re.findall(r"[ ;{]color: ([^;}]+)", css)
    assert set(own) <= {"var(--ink)", "var(--muted)", "var(--accent)"}


def test_the_command_writes_a_page_or_leaves_the_old_one(tmp_path, capsys):
    rows = tmp_path / "rows.jsonl"
    results.append(rows, make_row())
    output = tmp_path / "new" / "report.html"
    arguments = ["report", "--results", str(rows), "--output", str(output)]
    assert main(arguments) == 0
    assert "1 rows" in capsys.readouterr().out
    before = output.read_bytes()
    page = Page(before.decode())
    assert "None: result rows without run directories." in [p.text for p in page.all("p")]
    rows.write_text(rows.read_text()[:-40])
    command_refusal(capsys, arguments)
    assert output.read_bytes() == before
    assert [path.name for path in output.parent.iterdir()] == ["report.html"]


FIRST_TABLE = """
const table = document.querySelector("table.sortable");
return [...table.tBodies[0].rows].map((row) => row.cells[arguments[0]].innerText);
"""
SORTED = """
return [...document.querySelectorAll("table.sortable th[aria-sort]")]
  .filter((head) => head.closest("table") === document.querySelector("table.sortable"))
  .map((head) => head.getAttribute("aria-sort"));
"""
SHOWN = "return getComputedStyle(document.querySelector(arguments[0])).clipPath"


@pytest.fixture(scope="module")
def browser(tmp_path_factory, text):
    folder = tmp_path_factory.mktemp("browser")
    file = folder / "report.html"
    file.write_text(text)
    with chromium(folder / "profile") as browser:
        browser.open(file)
        yield browser


def heading(k):
    return f"table.sortable th:nth-child({k + 1}) button"


def test_a_click_sorts_up_and_down(browser):
    browser.view(1400, 900)
    by_score = browser.run(FIRST_TABLE, 3)
    browser.click(browser.find(heading(3)))
    assert browser.run(FIRST_TABLE, 3) == by_score[::-1]
    assert browser.run(SORTED)[3] == "ascending"
    browser.click(browser.find(heading(3)))
    assert browser.run(FIRST_TABLE, 3) == by_score
    assert browser.run(SORTED).count("none") == len(browser.run(SORTED)) - 1


def test_the_keyboard_reaches_a_heading_and_sorts(browser):
    browser.view(1400, 900)
    browser.run("document.querySelector('table.sortable').scrollIntoView(); document.body.focus()")
    browser.run(f"document.querySelector({json.dumps(heading(0))}).focus()")
    browser.type(TAB)
    focused = "return document.activeElement.innerText"
    assert browser.run(focused) == browser.run(
        f"return document.querySelector('{heading(1)}').innerText"
    )
    ring = "return getComputedStyle(document.activeElement).outlineStyle"
    assert browser.run(ring) == "solid"
    browser.type(ENTER)
    assert browser.run(SORTED)[1] == "descending"
    scores = [float(cell.split()[0]) for cell in browser.run(FIRST_TABLE, 1)]
    assert scores == sorted(scores, reverse=True)
    browser.type(SPACE)
    assert [float(cell.split()[0]) for cell in browser.run(FIRST_TABLE, 1)] == scores[::-1]
    # Missing values stay at the end in either order.
    for _ in range(2):
        browser.press(browser.find(heading(5)), ENTER)
        assert browser.run(FIRST_TABLE, 5)[-1] == "-"
    browser.press(browser.find(heading(0)), ENTER)
    assert browser.run(SORTED)[0] == "ascending"
    names = browser.run(FIRST_TABLE, 0)
    assert names == sorted(names)


def test_the_slider_moves_the_border_of_truth_and_prediction(browser):
    def clips():
        return browser.run(SHOWN, ".view .truth"), browser.run(SHOWN, ".view .predicted")

    slider = browser.find("input.cut")
    said = "return document.querySelector('input.cut').getAttribute('aria-valuetext')"
    assert clips() == ("inset(0px 50% 0px 0px)", "inset(0px 0px 0px 50%)")
    browser.press(slider, RIGHT * 7)
    assert clips() == ("inset(0px 43% 0px 0px)", "inset(0px 0px 0px 57%)")
    assert "57%" in browser.run(said)
    browser.press(slider, LEFT * 10)
    assert clips() == ("inset(0px 53% 0px 0px)", "inset(0px 0px 0px 47%)")
    others = "return getComputedStyle(document.querySelectorAll('.truth')[1]).clipPath"
    assert browser.run(others) == "inset(0px 50% 0px 0px)"


def test_the_labels_fade_and_wrong_pixels_take_their_place(browser):
    style = "return getComputedStyle(document.querySelector(arguments[0]))[arguments[1]]"
    assert browser.run(style, ".view .truth", "opacity") == "0.65"
    browser.press(browser.find("input.opacity"), LEFT * 5)
    assert browser.run(style, ".view .predicted", "opacity") == "0.6"
    assert browser.run(style, ".view .wrong", "display") == "none"
    browser.press(browser.find("input.mark"), SPACE)
    assert browser.run(style, ".view .wrong", "display") == "block"
    assert browser.run(style, ".view .predicted", "display") == "none"


@pytest.mark.parametrize("width", [400, 1400])
@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_it_fits_a_narrow_and_a_wide_window(browser, width, scheme):
    browser.view(width, 900, scheme)
    page = "return document.documentElement.scrollWidth <= document.documentElement.clientWidth"
    assert browser.run(page)
    grounds = {"light": "rgb(255, 255, 255)", "dark": "rgb(22, 22, 26)"}
    assert browser.run("return getComputedStyle(document.body).backgroundColor") == grounds[scheme]
    wide = """return [...document.querySelectorAll(".scroll")].some(
        (box) => box.scrollWidth > box.clientWidth && box.tabIndex === 0)"""
    assert browser.run(wide)


def test_no_figure_is_drawn_larger_than_it_is(browser):
    browser.view(1400, 900)
    wider = """return [...document.querySelectorAll("svg")].filter((svg) =>
        svg.clientWidth > parseFloat(svg.style.getPropertyValue("--width"))).length"""
    assert browser.run(wider) == 0


def test_the_browser_requests_nothing_and_logs_no_errors(browser, tmp_path, text):
    file = tmp_path / "report.html"
    file.write_text(text)
    browser.requests()
    browser.messages()
    browser.open(file)
    browser.run("document.querySelectorAll('details').forEach((each) => { each.open = true; })")
    browser.draw_all()
    assert browser.requests() == [file.as_uri()]
    assert browser.messages() == []


@pytest.mark.parametrize(("channels", "shown"), [(1, 1), (2, 1), (4, 3), (5, 3)])
def test_images_of_any_channels_are_shown_as_in_pictures(channels, shown):
    one = predicted([])
    pixels = np.random.default_rng(0).integers(0, 256, (6, 8, channels), np.uint8)
    several = dataclasses.replace(one, examples=[{**one.examples[0], "image": pixels}])
    (image,) = report._images(0, several)
    found = base64.b64decode(image["url"].partition("base64,")[2].rstrip('")'))
    with Image.open(io.BytesIO(found)) as picture:
        np.testing.assert_array_equal(
            np.asarray(picture).reshape(6, 8, -1), pixels[..., :shown], strict=True
        )
