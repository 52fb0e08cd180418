"""Chromium over the built site and over a live notebook. `make browser` runs these; elsewhere they are skipped when something is missing.

Pictures of each page, desktop and phone, are left in build/screens to look at.
"""
import os, shutil, socket, subprocess, sys, time
from pathlib import Path
import pytest

ROOT = Path(__file__).resolve().parent.parent
SITE, SCREENS = ROOT/"_docs", ROOT/"build/screens"
CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
FLAGS = ["--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-background-networking", "--disable-component-update", "--disable-sync"]
SIZES = {"desktop": (1280, 900), "phone": (390, 844)}
pytestmark = pytest.mark.browser


def need(there, what):
    "Skip outside CI, fail in CI, when something the checks need is missing."
    if not there: (pytest.fail if os.environ.get("CI") else pytest.skip)(what)


@pytest.fixture
def browser():
    "A Chromium of its own for each test: one that has shown many long pages is slow to start a live one."
    try: from playwright.sync_api import sync_playwright
    except ImportError: sync_playwright = None
    need(sync_playwright, "playwright is not installed: make docs")
    need(CHROMIUM, "there is no Chromium: on Debian or Ubuntu, apt install chromium")
    with sync_playwright() as playwright:
        chromium = playwright.chromium.launch(executable_path=CHROMIUM, args=FLAGS)
        yield chromium
        chromium.close()


def open_page(browser, url, size="desktop", scheme="light"):
    "A page, with a list of what went wrong on it and of what it asked of the network."
    width, height = SIZES[size]
    page = browser.new_context(viewport={"width": width, "height": height}, color_scheme=scheme).new_page()
    page.wrong, page.outside = [], []
    page.on("console", lambda m: page.wrong.append(m.text) if m.type == "error" else None)
    page.on("pageerror", lambda e: page.wrong.append(str(e)))
    page.on("request", lambda r: None if r.url.startswith(("file:", "data:", "blob:", "http://127.0.0.1")) else page.outside.append(r.url))
    page.goto(url)
    return page


def drag(page, handle, by):
    "Drag an element sideways with the mouse."
    handle.scroll_into_view_if_needed()
    box = handle.bounding_box()
    x, y = box["x"] + box["width"]/2, box["y"] + box["height"]/2
    page.mouse.move(x, y)
    page.mouse.down()
    page.mouse.move(x + by, y, steps=8)
    page.mouse.up()


def site_pages():
    return sorted(p.relative_to(SITE).as_posix() for p in SITE.rglob("*.html"))


@pytest.fixture(scope="module")
def site():
    need((SITE/"index.html").exists(), "the site is not built: make docs")
    SCREENS.mkdir(parents=True, exist_ok=True)
    return site_pages()


@pytest.mark.parametrize("size", SIZES)
def test_each_page_is_whole(browser, site, size):
    for name in site:
        page = open_page(browser, f"file://{SITE/name}", size)
        page.wait_for_timeout(200)
        page.screenshot(path=SCREENS/f"{name.replace('/', '-').removesuffix('.html')}-{size}.png", full_page=True)
        assert page.wrong == [] and page.outside == [], name
        assert page.evaluate("document.documentElement.scrollWidth") <= SIZES[size][0], f"{name} is wider than the {size} screen"
        assert page.locator("h1").count() >= 1, name
        raw = page.evaluate(r"[...document.querySelectorAll('.math')].filter(e => !e.querySelector('.katex')).length")
        assert raw == 0 and page.locator(".katex-error").count() == 0, f"{name}: {raw} formulas are not rendered"
        page.context.close()


def test_the_loss_has_formulas(browser, site):
    page = open_page(browser, f"file://{SITE/'loss.html'}")
    assert page.locator(".katex").count() > 5


def test_dark_is_dark(browser, site):
    page = open_page(browser, f"file://{SITE/'loss.html'}", scheme="dark")
    page.screenshot(path=SCREENS/"loss-dark.png")
    luma = "e => { const c = getComputedStyle(e).backgroundColor.match(/[\\d.]+/g).map(Number); return c[3] === 0 ? 0 : (c[0] + c[1] + c[2])/3 }"
    for selector in ("body", "#quarto-sidebar", "header nav"):
        assert page.locator(selector).first.evaluate(luma) < 100, selector


def test_search_works_from_disk(browser, site):
    page = open_page(browser, f"file://{SITE/'index.html'}")
    page.locator("input[type=search], input[placeholder=Search]").first.click()
    page.keyboard.type("advantage", delay=20)
    page.locator("a[href*='loss.html']:visible", has_text="dvantage").first.wait_for(timeout=5000)
    assert page.wrong == []


FIGURES = [("loss.html", "calibrl-alpha"), *(("tutorials/alpha.html", f"calibrl-{name}") for name in ("alpha", "group", "table"))]


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("name, figure", FIGURES, ids=lambda v: v.removesuffix(".html").split("/")[-1])
def test_alpha_moves_without_a_kernel(browser, site, size, name, figure):
    page = open_page(browser, f"file://{SITE/name}", size)
    slider = page.locator(f"#{figure} input[type=range]").first
    state = f"[document.querySelector('#{figure} output').textContent, ...[...document.querySelectorAll('#{figure} svg *')].map(e => ['points', 'd', 'height', 'width', 'cy'].map(a => e.getAttribute(a)).join())].join('|')"
    before, value = page.evaluate(state), slider.input_value()
    drag(page, slider, slider.bounding_box()["width"]*.3)
    after, moved = page.evaluate(state), slider.input_value()
    page.screenshot(path=SCREENS/f"dragged-{figure}-{size}.png")
    assert float(moved) > float(value), "the slider did not move"
    assert before.split("|")[0] != after.split("|")[0], "the read-out did not change"
    assert sum(a != b for a, b in zip(before.split("|")[1:], after.split("|")[1:])) >= 2, "the picture did not change"
    slider.focus()
    page.keyboard.press("ArrowLeft")
    assert page.evaluate(state) != after, "the arrow keys do nothing"
    assert page.wrong == [] and page.outside == []


def free_port():
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        return s.getsockname()[1]


@pytest.fixture
def voila(tmp_path):
    "Voila, serving the first tutorial."
    port, log = free_port(), open(tmp_path/"log", "w+")
    env = {k: v for k, v in os.environ.items() if k != "MPLBACKEND"} | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1", "IPYTHONDIR": str(tmp_path/"ipython")}   # its own history, which another kernel cannot lock; a kernel picks its own backend: with agg a figure is a line of text
    server = subprocess.Popen([sys.executable, "-m", "voila", "alpha.ipynb", "--no-browser", f"--port={port}", "--Voila.ip=127.0.0.1"], cwd=ROOT/"nbs/tutorials", env=env, stdout=log, stderr=log)
    try:
        for _ in range(240):
            try: socket.create_connection(("127.0.0.1", port), timeout=1).close()
            except OSError: time.sleep(.25)
            else: break
            assert server.poll() is None, (tmp_path/"log").read_text()[-2000:]
        yield f"http://127.0.0.1:{port}/"
    finally:
        server.terminate()
        server.wait(timeout=20)
        log.close()


READ = """k => { const box = [...document.querySelectorAll('.widget-interact')][k], img = box && box.querySelector('img');
  return img ? [img.src, box.querySelector('.jp-RenderedText pre').textContent] : null }"""


def drag_alpha(page, k, name):
    "Drag alpha of the k-th figure to the left; the picture and the sentence above it must change."
    box, before = page.locator(".widget-interact").nth(k), page.evaluate(READ, k)
    slider = box.locator(".widget-slider").first
    value = float(slider.locator(".widget-readout").inner_text())
    drag(page, slider.locator(".noUi-handle"), -slider.locator(".noUi-target").bounding_box()["width"]*.2)
    page.wait_for_function(f"old => {{ const now = ({READ})({k}); return now && now[0] != old[0] && now[1] != old[1] }}", arg=before, timeout=90_000)
    page.screenshot(path=SCREENS/f"voila-{name}.png")
    assert float(slider.locator(".widget-readout").inner_text()) < value
    assert box.locator("img").first.evaluate("i => i.getBoundingClientRect().right") <= page.viewport_size["width"], "the picture is wider than the screen"


def test_alpha_moves_with_a_kernel(browser, voila):
    "The three figures of the first tutorial, on a large screen and then on a phone's."
    from playwright.sync_api import TimeoutError as Late
    SCREENS.mkdir(parents=True, exist_ok=True)
    page, ready = browser.new_context().new_page(), "() => document.querySelectorAll('.widget-interact img').length == 3"
    for size in SIZES:
        page.set_viewport_size(dict(zip(("width", "height"), SIZES[size])))
        if size == "desktop":
            for last in (False, False, False, True):        # each visit starts a kernel, and now and then one never answers: visit again, as a reader would
                try: page.goto(voila, timeout=75_000); page.wait_for_function(ready, timeout=30_000); break
                except Late:
                    if last: raise
        for k, name in enumerate(("gate", "group", "table")): drag_alpha(page, k, f"{name}-{size}")
