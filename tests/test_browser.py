"""Chromium over the built site and over a live notebook. `make browser` runs these; elsewhere they are skipped when something is missing.

Pictures of each page, desktop and phone, are left in build/screens to look at.
"""
import json, os, shutil, socket, subprocess, sys, time
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


@pytest.mark.parametrize("size", SIZES)
def test_alpha_moves_without_a_kernel(browser, site, size):
    page = open_page(browser, f"file://{SITE/'loss.html'}", size)
    slider = page.locator("#calibrl-alpha input[type=range]").first
    state = "[document.querySelector('#calibrl-alpha output').textContent, ...[...document.querySelectorAll('#calibrl-alpha polyline, #calibrl-alpha path, #calibrl-alpha rect')].map(e => e.getAttribute('points') + e.getAttribute('d') + e.getAttribute('height'))].join('|')"
    before, value = page.evaluate(state), slider.input_value()
    drag(page, slider, slider.bounding_box()["width"]*.3)
    after, moved = page.evaluate(state), slider.input_value()
    page.screenshot(path=SCREENS/f"alpha-dragged-{size}.png")
    assert float(moved) > float(value), "the slider did not move"
    assert before.split("|")[0] != after.split("|")[0], "the read-out did not change"
    assert sum(a != b for a, b in zip(before.split("|")[1:], after.split("|")[1:])) >= 2, "the picture did not change"
    slider.focus()
    page.keyboard.press("ArrowLeft")
    assert page.evaluate(state) != after, "the arrow keys do nothing"
    assert page.wrong == [] and page.outside == []


LIVE = """from ipywidgets import interact, FloatSlider
from calibrl.viz import plot_alpha
interact(plot_alpha, alpha=FloatSlider(.5, min=0, max=1, step=.05, continuous_update=False));"""


def free_port():
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        return s.getsockname()[1]


@pytest.fixture
def voila(tmp_path):
    "Voila, serving a notebook with the slider that 00_loss has."
    cell = {"cell_type": "code", "id": "slider", "metadata": {}, "execution_count": None, "outputs": [], "source": LIVE.splitlines(True)}
    spec = {"kernelspec": {"display_name": "python3", "language": "python", "name": "python3"}}
    (tmp_path/"alpha.ipynb").write_text(json.dumps({"cells": [cell], "metadata": spec, "nbformat": 4, "nbformat_minor": 5}), encoding="utf-8")
    port, log = free_port(), open(tmp_path/"log", "w+")
    env = {k: v for k, v in os.environ.items() if k != "MPLBACKEND"} | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1", "IPYTHONDIR": str(tmp_path/"ipython")}   # its own history; a kernel picks its own backend: with agg a figure is a line of text
    server = subprocess.Popen([sys.executable, "-m", "voila", "alpha.ipynb", "--no-browser", f"--port={port}", "--Voila.ip=127.0.0.1"], cwd=tmp_path, env=env, stdout=log, stderr=log)
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


def test_alpha_moves_with_a_kernel(browser, voila):
    page = browser.new_context(viewport={"width": 1280, "height": 900}).new_page()
    from playwright.sync_api import TimeoutError as Late
    picture = page.locator(".jp-OutputArea-output img").first
    for last in (False, False, True):                       # each visit starts a kernel, and now and then one never answers: visit again, as a reader would
        try: page.goto(voila, timeout=60_000); picture.wait_for(timeout=60_000); break
        except Late:
            if last: raise
    before = picture.get_attribute("src")
    drag(page, page.locator(".jupyter-widget-slider .noUi-handle, .widget-slider .noUi-handle").first, -60)
    page.wait_for_function("old => { const i = document.querySelector('.jp-OutputArea-output img'); return i && i.src !== old }", arg=before, timeout=60_000)
    readout = page.locator(".widget-readout").first.inner_text()
    SCREENS.mkdir(parents=True, exist_ok=True)
    page.screenshot(path=SCREENS/"voila-alpha.png")
    assert float(readout) < .5
