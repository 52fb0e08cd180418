"""Chromium over the built site and over a live notebook. `make browser` runs these; elsewhere they
are skipped when something is missing.

Pictures of one page of each kind, desktop and phone, are left in build/screens to look at.
"""
import os
import shutil
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
SITE = ROOT/"_docs"
SCREENS = ROOT/"build/screens"
NAMES = ("chromium", "chromium-browser", "google-chrome")
CHROMIUM = next(filter(None, map(shutil.which, NAMES)), None)
FLAGS = ["--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run",
         "--disable-background-networking", "--disable-component-update", "--disable-sync"]
SIZES = {"desktop": (1280, 900), "phone": (390, 844)}
OURS = ("file:", "data:", "blob:", "http://127.0.0.1")      # where a page may ask for something
pytestmark = pytest.mark.browser


def need(there, what):
    "Skip outside CI, fail in CI, when something the checks need is missing."
    if there:
        return
    if os.environ.get("CI"):
        pytest.fail(what)
    pytest.skip(what)


@pytest.fixture
def browser():
    """A Chromium of its own for each test: one that has shown many long pages is slow to start a
    live one."""
    try:
        from playwright.sync_api import sync_playwright
    except ImportError:
        sync_playwright = None
    need(sync_playwright, "playwright is not installed: make docs")
    need(CHROMIUM, "there is no Chromium: on Debian or Ubuntu, apt install chromium")
    with sync_playwright() as playwright:
        chromium = playwright.chromium.launch(executable_path=CHROMIUM, args=FLAGS)
        yield chromium
        chromium.close()


def open_page(browser, url, size="desktop", scheme="light"):
    "A page, with a list of what went wrong on it and of what it asked of the network."
    width, height = SIZES[size]
    context = browser.new_context(viewport={"width": width, "height": height}, color_scheme=scheme)
    page = context.new_page()
    page.wrong = []
    page.outside = []

    def said(message):
        if message.type == "error":
            page.wrong.append(message.text)

    def asked(request):
        if not request.url.startswith(OURS):
            page.outside.append(request.url)

    page.on("console", said)
    page.on("pageerror", lambda error: page.wrong.append(str(error)))
    page.on("request", asked)
    page.goto(url)
    return page


def drag(page, handle, by):
    "Drag an element sideways with the mouse."
    handle.scroll_into_view_if_needed()
    box = handle.bounding_box()
    x = box["x"] + box["width"]/2
    y = box["y"] + box["height"]/2
    page.mouse.move(x, y)
    page.mouse.down()
    page.mouse.move(x + by, y, steps=8)
    page.mouse.up()


def site_pages():
    return sorted(path.relative_to(SITE).as_posix() for path in SITE.rglob("*.html"))


@pytest.fixture(scope="module")
def site():
    need((SITE/"index.html").exists(), "the site is not built: make docs")
    SCREENS.mkdir(parents=True, exist_ok=True)
    return site_pages()


# One page of each kind has its picture taken: the first, a chapter with figures, one with code and
# tables alone, a tutorial, a page of text, and the longest
PICTURED = ("index.html", "loss.html", "train.html", "verify/units.html", "tutorials/alpha.html",
            "pages/method.html", "pages/results.html", "api.html")
SETTLED = """document.fonts.ready.then(() => new Promise(
  done => requestAnimationFrame(() => requestAnimationFrame(() => setTimeout(done, 20)))))"""
BARE = """[...document.querySelectorAll('.math')].filter(e => !e.querySelector('.katex')).length"""


FRAME = ("#quarto-header", "#quarto-sidebar", "#quarto-margin-sidebar", ".page-navigation")
CUT = """[...document.querySelectorAll('pre, table, img, svg, .katex-html')].filter(
  e => e.closest('main') && (e.getBoundingClientRect().right > innerWidth + 1
       || e.matches('pre, table') && e.scrollWidth > e.clientWidth + 1)).length"""


@pytest.mark.parametrize("name", ["tutorials/alpha", "loss", "pages/results"])
def test_on_paper_is_the_text_alone_and_nothing_is_cut(browser, site, name):
    page = open_page(browser, f"file://{SITE/name}.html")
    assert all(page.locator(part).is_visible() for part in FRAME)
    page.set_viewport_size({"width": 680, "height": 980})    # A4 without its margins
    page.emulate_media(media="print")
    page.evaluate(SETTLED)
    assert not any(page.locator(part).is_visible() for part in FRAME)
    assert page.evaluate(CUT) == 0


@pytest.mark.parametrize("size", SIZES)
def test_each_page_is_whole(browser, site, size):
    page = open_page(browser, "about:blank", size)
    for name in site:
        page.goto(f"file://{SITE/name}")
        page.evaluate(SETTLED)
        if name in PICTURED:
            picture = name.replace("/", "-").removesuffix(".html")
            page.screenshot(path=SCREENS/f"{picture}-{size}.png", full_page=True)
        assert page.wrong == [] and page.outside == [], name

        # as wide as the screen, with a heading, and every formula rendered
        width = page.evaluate("document.documentElement.scrollWidth")
        assert width <= SIZES[size][0], f"{name} is wider than the {size} screen"
        assert page.locator("h1").count() >= 1, name
        bare = page.evaluate(BARE)
        assert bare == 0, f"{name}: {bare} formulas are not rendered"
        assert page.locator(".katex-error").count() == 0, f"{name}: a formula is refused"
    assert set(PICTURED) <= set(site)


def test_the_loss_has_formulas(browser, site):
    page = open_page(browser, f"file://{SITE/'loss.html'}")
    assert page.locator(".katex").count() > 5


LUMA = r"""e => {
  const c = getComputedStyle(e).backgroundColor.match(/[\d.]+/g).map(Number)
  return c[3] === 0 ? 0 : (c[0] + c[1] + c[2])/3
}"""


def test_dark_is_dark(browser, site):
    page = open_page(browser, f"file://{SITE/'loss.html'}", scheme="dark")
    page.screenshot(path=SCREENS/"loss-dark.png")
    for selector in ("body", "#quarto-sidebar", "header nav"):
        assert page.locator(selector).first.evaluate(LUMA) < 100, selector


def test_search_works_from_disk(browser, site):
    page = open_page(browser, f"file://{SITE/'index.html'}")
    page.locator("input[type=search], input[placeholder=Search]").first.click()
    page.keyboard.type("advantage", delay=20)
    page.locator("a[href*='loss.html']:visible", has_text="dvantage").first.wait_for(timeout=5000)

    # a chapter before the paragraphs that mention its subject
    page.locator("input[type=search], input[placeholder=Search]").first.fill("alpha in your hand")
    first = page.locator("a.search-result:visible").first
    page.locator("a.search-result:visible", has_text="Alpha in your hand").first.wait_for()
    assert first.get_attribute("href").endswith("tutorials/alpha.html")
    assert page.wrong == []


FIGURES = [("loss.html", "calibrl-alpha"),
           *(("tutorials/alpha.html", f"calibrl-{name}") for name in ("alpha", "group", "table"))]
STATE = """figure => {
  const root = document.getElementById(figure)
  const drawn = e => ['points', 'd', 'height', 'width', 'cy'].map(a => e.getAttribute(a)).join()
  return [root.querySelector('output').textContent, [...root.querySelectorAll('svg *')].map(drawn)]
}"""


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("name, figure", FIGURES,
                         ids=lambda v: v.removesuffix(".html").split("/")[-1])
def test_alpha_moves_without_a_kernel(browser, site, size, name, figure):
    page = open_page(browser, f"file://{SITE/name}", size)
    slider = page.locator(f"#{figure} input[type=range]").first
    value = slider.input_value()
    said, drawn = page.evaluate(STATE, figure)

    # with the mouse: the slider, the sentence and two marks of the picture at least
    drag(page, slider, slider.bounding_box()["width"]*.3)
    page.screenshot(path=SCREENS/f"dragged-{figure}-{size}.png")
    said_then, drawn_then = page.evaluate(STATE, figure)
    assert float(slider.input_value()) > float(value), "the slider did not move"
    assert said_then != said, "the read-out did not change"
    changed = sum(before != after for before, after in zip(drawn, drawn_then, strict=True))
    assert changed >= 2, "the picture did not change"

    # with the keyboard
    slider.focus()
    page.keyboard.press("ArrowLeft")
    assert page.evaluate(STATE, figure) != [said_then, drawn_then], "the arrow keys do nothing"
    assert page.wrong == [] and page.outside == []


SMALLEST = """id => {
  const inside = [...document.querySelectorAll('#' + id + ' svg text')]
  const drawn = e => e.getBoundingClientRect().height && e.textContent
  const size = e => parseFloat(getComputedStyle(e).fontSize) * e.getScreenCTM().a
  return Math.min(...inside.filter(drawn).map(size))
}"""
PROJECTORS = ((1280, 720), (1024, 768))


@pytest.mark.parametrize("name, figure", FIGURES,
                         ids=lambda v: v.removesuffix(".html").split("/")[-1])
def test_each_figure_has_a_large_mode_for_a_projector(browser, site, name, figure):
    page = open_page(browser, f"file://{SITE/name}")
    for width, height in PROJECTORS:
        page.set_viewport_size({"width": width, "height": height})
        page.locator(f"#{figure}-large").click()
        page.wait_for_timeout(300)
        page.screenshot(path=SCREENS/f"large-{figure}-{width}.png")
        slider = page.locator(f"#{figure} input[type=range]").first
        assert slider.bounding_box()["width"] >= 320
        assert page.evaluate(SMALLEST, figure) >= 14, "text in the figure is too small to project"
        page.locator(f"#{figure}-large").click()
        page.wait_for_timeout(300)
        assert slider.bounding_box()["width"] < 320
    assert page.wrong == [] and page.outside == []


def test_a_link_restores_the_setting_of_a_figure(browser, site):
    address = f"file://{SITE/'tutorials/alpha.html'}"
    page = open_page(browser, address)
    page.locator("#calibrl-table-a").fill("1")
    page.locator("#calibrl-table-s").fill("2")
    link = page.locator("#calibrl-table-link").get_attribute("href")
    state = page.evaluate(STATE, "calibrl-table")

    other = open_page(browser, address + link)
    assert other.evaluate(STATE, "calibrl-table") == state
    assert other.locator("#calibrl-table-s").input_value() == "2"

    # what is no position of a knob changes nothing
    wrong = open_page(browser, address + "#calibrl-table:a=99,s=<b>,w=x,nothing=1")
    untouched = open_page(browser, address)
    assert wrong.evaluate(STATE, "calibrl-table") == untouched.evaluate(STATE, "calibrl-table")
    assert wrong.wrong == []


def free_port():
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        return s.getsockname()[1]


def wait_for(port, server, log):
    "Until somebody answers at a port; a server that ends before that says why in its log."
    for _ in range(240):
        try:
            socket.create_connection(("127.0.0.1", port), timeout=1).close()
            return
        except OSError:
            time.sleep(.25)
        assert server.poll() is None, log.read_text()[-2000:]


@pytest.fixture
def voila(tmp_path):
    "Voila, serving the first tutorial."
    # a history of its own, which another kernel cannot lock; and a kernel picks its own backend:
    # with agg a figure is a line of text
    env = {name: value for name, value in os.environ.items() if name != "MPLBACKEND"}
    env |= {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1",
            "IPYTHONDIR": str(tmp_path/"ipython")}
    port = free_port()
    command = [sys.executable, "-m", "voila", "alpha.ipynb", "--no-browser", f"--port={port}",
               "--Voila.ip=127.0.0.1"]
    with open(tmp_path/"log", "w") as log:
        server = subprocess.Popen(command, cwd=ROOT/"nbs/tutorials", env=env, stdout=log,
                                  stderr=log)
        try:
            wait_for(port, server, tmp_path/"log")
            yield f"http://127.0.0.1:{port}/"
        finally:
            server.terminate()
            server.wait(timeout=20)


READ = """k => {
  const box = document.querySelectorAll('.widget-interact')[k]
  const image = box && box.querySelector('img')
  return image ? [image.src, box.querySelector('.jp-RenderedText pre').textContent] : null
}"""
BOTH_CHANGED = f"""([k, before]) => {{
  const now = ({READ})(k)
  return now && now[0] != before[0] && now[1] != before[1]
}}"""
READY = "() => document.querySelectorAll('.widget-interact img').length == 3"


def drag_alpha(page, k, name):
    "Drag alpha of the k-th figure to the left; the picture and the sentence above it must change."
    box = page.locator(".widget-interact").nth(k)
    before = page.evaluate(READ, k)
    slider = box.locator(".widget-slider").first
    value = float(slider.locator(".widget-readout").inner_text())
    width = slider.locator(".noUi-target").bounding_box()["width"]
    drag(page, slider.locator(".noUi-handle"), -width*.2)
    page.wait_for_function(BOTH_CHANGED, arg=[k, before], timeout=90_000)
    page.screenshot(path=SCREENS/f"voila-{name}.png")
    assert float(slider.locator(".widget-readout").inner_text()) < value
    right = box.locator("img").first.evaluate("i => i.getBoundingClientRect().right")
    assert right <= page.viewport_size["width"], "the picture is wider than the screen"


def visit(page, url):
    """Each visit starts a kernel, and now and then one never answers: visit again, as a reader
    would."""
    from playwright.sync_api import TimeoutError as Late
    for last in (False, False, False, True):
        try:
            page.goto(url, timeout=75_000)
            page.wait_for_function(READY, timeout=30_000)
            return
        except Late:
            if last:
                raise


def test_alpha_moves_with_a_kernel(browser, voila):
    "The three figures of the first tutorial, on a large screen and then on a phone's."
    SCREENS.mkdir(parents=True, exist_ok=True)
    page = browser.new_context().new_page()
    for size, (width, height) in SIZES.items():
        page.set_viewport_size({"width": width, "height": height})
        if size == "desktop":
            visit(page, voila)
        for k, name in enumerate(("gate", "group", "table")):
            drag_alpha(page, k, f"{name}-{size}")
