"""The report as a browser shows it: at a phone's and a desk's width, by day and by night."""

import shutil

import pytest

from analysis import report
from tests.analysis import synthetic_sweep as made

sync_api = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")

BROWSERS = ("chromium", "chromium-browser", "google-chrome")
FLAGS = (
    "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run",
    "--disable-background-networking", "--disable-component-update", "--disable-sync",
)  # fmt: skip
CONTRASTS = """() => {
  const parts = (colour) => colour.match(/[\\d.]+/g).map(Number);
  const light = (colour) => {
    const [r, g, b] = parts(colour).slice(0, 3).map((x) => x / 255)
      .map((x) => (x <= 0.04045 ? x / 12.92 : ((x + 0.055) / 1.055) ** 2.4));
    return 0.2126 * r + 0.7152 * g + 0.0722 * b;
  };
  const behind = (element) => {
    for (let at = element; at; at = at.parentElement) {
      const colour = getComputedStyle(at).backgroundColor, alpha = parts(colour)[3] ?? 1;
      if (alpha === 1) return colour;
      if (alpha > 0) throw new Error(`${at.tagName} is half transparent`);
    }
    throw new Error("nothing is behind it");
  };
  const shown = [...document.body.querySelectorAll("*")].filter((element) =>
    element.checkVisibility() &&
    [...element.childNodes].some((node) => node.nodeType === 3 && node.data.trim()));
  return shown.map((element) => {
    const [a, b] = [light(getComputedStyle(element).color), light(behind(element))];
    return [(Math.max(a, b) + 0.05) / (Math.min(a, b) + 0.05), element.outerHTML.slice(0, 80)];
  });
}"""
"""WCAG 2's contrast of every element that has text of its own and is seen."""


@pytest.fixture(scope="module")
def browser():
    found = next(filter(None, map(shutil.which, BROWSERS)), None)
    if found is None:
        pytest.skip(f"no browser found: none of {', '.join(BROWSERS)} is on the PATH")
    with sync_api.sync_playwright() as running:
        one = running.chromium.launch(executable_path=found, args=list(FLAGS))
        yield one
        one.close()


@pytest.fixture(scope="module")
def address(tmp_path_factory):
    folder = made.write(tmp_path_factory.mktemp("full"))
    (folder / "report.html").write_text(report.page(folder), encoding="utf-8")
    return (folder / "report.html").as_uri()


@pytest.fixture(params=[(375, "light"), (375, "dark"), (1280, "light"), (1280, "dark")], ids=str)
def view(request, browser, address):
    """The page, with what it asked for and what it complained of."""
    width, scheme = request.param
    context = browser.new_context(
        viewport={"width": width, "height": 800}, color_scheme=scheme, offline=True
    )
    page = context.new_page()
    page.asked, page.complaints = [], []
    page.on("request", lambda asked: page.asked.append(asked.url))
    page.on("console", lambda said: page.complaints.append(said.text))
    page.on("pageerror", lambda error: page.complaints.append(str(error)))
    page.goto(address)
    yield page
    context.close()


def test_nothing_is_fetched_nothing_runs_and_nothing_is_complained_of(view, address):
    fetched = [url for url in view.asked if not url.startswith("data:")]
    assert fetched == [address]
    assert view.title() == f"Probe sweep: {made.MODEL}"
    for details in view.locator("details").all():
        details.evaluate("one => { one.open = true }")
    assert view.locator("script").count() == 0
    assert view.title() == f"Probe sweep: {made.MODEL}"
    assert view.complaints == []


def test_the_page_is_as_wide_as_the_window_and_tables_scroll_in_their_boxes(view):
    width = view.viewport_size["width"]
    for details in view.locator("details").all():
        details.evaluate("one => { one.open = true }")
    assert view.evaluate("document.documentElement.scrollWidth") == width
    boxes = view.eval_on_selector_all(".scroll", "all => all.map(b => [b.scrollWidth, "
                                      "b.getBoundingClientRect().right])")  # fmt: skip
    assert all(right <= width for _, right in boxes)
    if width == 375:  # The positive control: some are wider than the window.
        assert any(inner > width for inner, _ in boxes)


def test_text_is_hidden_until_it_is_asked_for_by_mouse_or_by_keys(view):
    prompts = view.locator("#wrong details")
    assert prompts.count() > 1
    assert view.locator("details[open]").count() == 0
    for one, ask in ((prompts.nth(0), "click"), (prompts.nth(1), "keys")):
        text = one.locator("blockquote")
        assert not text.is_visible()
        if ask == "click":
            one.locator("summary").click()
        else:
            one.locator("summary").focus()
            view.keyboard.press("Enter")
        assert text.is_visible()
        assert made.NASTY in text.inner_text()


def test_figures_are_there_and_say_what_they_are(view):
    images = view.locator("img").all()
    assert images
    for image in images:
        assert image.get_attribute("alt")
        assert image.evaluate("one => one.complete && one.naturalWidth > 0")
        box = image.bounding_box()
        assert min(box["width"], box["height"]) > 100
        natural = image.evaluate("one => one.naturalWidth / one.naturalHeight")
        assert box["width"] / box["height"] == pytest.approx(natural, rel=0.02)


def test_text_can_be_read_by_day_and_by_night(view):
    view.locator("#wrong details").nth(0).evaluate("one => { one.open = true }")
    found = view.evaluate(CONTRASTS)
    assert len(found) > 100
    assert min(found) >= [4.5], min(found)
    # The positive control: ink as pale as the paper is found.
    view.evaluate("document.querySelector('h1').style.color = "
                  "getComputedStyle(document.body).backgroundColor")  # fmt: skip
    assert min(view.evaluate(CONTRASTS))[0] == pytest.approx(1)
