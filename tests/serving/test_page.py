"""The web page in a browser. Runs if Playwright and Chromium are installed."""

import base64
import json
import re
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("playwright")

from playwright.sync_api import Page, Request, Route, expect, sync_playwright

from splitattn.classifier import Classifier
from splitattn.images.samples import sample_photographs
from splitattn.serving.app import create_app
from splitattn.serving.settings import Settings
from tests.cli.networks import write_weights

from .running import Running, running, until_ready

CHROMIUM = shutil.which("chromium")
pytestmark = pytest.mark.skipif(CHROMIUM is None, reason="needs Chromium")
PHOTOGRAPHS = [str(path) for path in sample_photographs()]
# Simulates dropping or pasting files: scripts cannot put files into a real event.
CARRY = """([names, kind]) => {
  const data = new DataTransfer();
  for (const [name, content] of names) {
    const bytes = Uint8Array.from(atob(content), (c) => c.charCodeAt(0));
    data.items.add(new File([bytes], name, { type: "image/jpeg" }));
  }
  const event = kind === "drop"
    ? new DragEvent("drop", { dataTransfer: data, bubbles: true, cancelable: true })
    : new ClipboardEvent("paste", { clipboardData: data, bubbles: true });
  document.querySelector("#drop").dispatchEvent(event);
}"""


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    with sync_playwright() as playwright:
        # Chromium's sandbox needs user namespaces, which containers may lack; the page is ours.
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        yield browser
        browser.close()


@pytest.fixture(scope="module")
def own(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Running]:
    weights = write_weights(tmp_path_factory.mktemp("weights") / "small.safetensors")
    with running(create_app(Classifier(weights=weights, engine="onnxruntime"))) as service:
        until_ready(service)
        yield service


def is_fault(line: Any) -> bool:
    """Whether a console line is an error, other than a failed request, which the page shows."""
    return line.type == "error" and not line.text.startswith("Failed to load resource")


@pytest.fixture
def page(browser: Any, own: Running) -> Iterator[Page]:
    """The page, which must request nothing from other hosts and log no error."""
    context = browser.new_context(accept_downloads=True)
    page = context.new_page()
    wrong: list[str] = []
    page.on("pageerror", lambda error: wrong.append(str(error)))
    page.on("console", lambda line: wrong.append(line.text) if is_fault(line) else None)

    def note(request: Request) -> None:
        if not request.url.startswith((own.url, "blob:", "data:")):
            wrong.append(request.url)

    page.on("request", note)
    page.goto(own.url)
    expect(page.locator("#about")).to_contain_text("classes")
    yield page
    context.close()
    assert wrong == []


def carried(*paths: str) -> list[list[str]]:
    return [[Path(p).name, base64.b64encode(Path(p).read_bytes()).decode()] for p in paths]


def answered(page: Page, count: int) -> list[str]:
    expect(page.get_by_role("status")).to_contain_text(
        re.compile(rf"^{count} photographs? answered")
    )
    return [each.inner_text() for each in page.query_selector_all(".card")]


def test_chosen_dropped_and_pasted_photographs_are_answered(page: Page) -> None:
    page.set_input_files("#files", PHOTOGRAPHS[:2])
    assert len(answered(page, 2)) == 2
    page.evaluate(CARRY, [carried(PHOTOGRAPHS[2]), "drop"])
    assert len(answered(page, 3)) == 3
    page.evaluate(CARRY, [carried(PHOTOGRAPHS[3]), "paste"])
    texts = answered(page, 4)
    assert [text.split("\n")[0] for text in texts] == [Path(p).name for p in PHOTOGRAPHS[:4]]
    assert all(text.count(" %") == 5 and " ms" in text for text in texts)
    with page.expect_download() as download:
        page.click("#json")
    stored = json.loads(Path(download.value.path()).read_text(encoding="utf-8"))
    assert [len(each["predictions"]) for each in stored] == [5] * 4
    with page.expect_download() as download:
        page.click("#csv")
    assert len(Path(download.value.path()).read_text(encoding="utf-8").splitlines()) == 21
    page.click("#clear")
    assert page.query_selector_all(".card") == []


def test_a_file_that_is_no_photograph_says_so_and_others_are_answered(
    page: Page, tmp_path: Path
) -> None:
    text = tmp_path / "<b>text<b>.jpg"
    text.write_text("no photograph")
    page.set_input_files("#files", [str(text), PHOTOGRAPHS[0]])
    bad, good = answered(page, 2)
    assert "<b>text<b>.jpg" in bad
    assert "expected an image" in bad
    assert " %" in good
    bad_picture, good_picture = page.query_selector_all(".picture")
    assert not bad_picture.is_visible()
    assert good_picture.is_visible()


def test_the_keyboard_alone_chooses_and_explains(page: Page) -> None:
    page.keyboard.press("Tab")
    assert page.evaluate("document.activeElement.id") == "files"
    outline = "getComputedStyle(document.querySelector('.choose strong')).outlineStyle"
    assert page.evaluate(outline) == "solid"
    with page.expect_file_chooser() as chooser:
        page.keyboard.press("Space")
    chooser.value.set_files(PHOTOGRAPHS[2])
    answered(page, 1)
    for _ in range(20):
        page.keyboard.press("Tab")
        if page.evaluate("document.activeElement.className") == "explain":
            break
    plain = page.get_attribute(".card img", "src")
    page.keyboard.press("Space")
    page.wait_for_selector(".explain[aria-pressed=true]")
    assert page.get_attribute(".card img", "src").startswith("data:image/jpeg;base64,")
    assert "Heat map of " in page.get_attribute(".card img", "alt")
    assert page.evaluate("document.activeElement.className") == "explain"
    # The picture is shown at its own size, so that its text is legible.
    assert page.evaluate("document.querySelector('.card img').getBoundingClientRect().width") == 640
    page.keyboard.press("Space")
    assert page.get_attribute(".card img", "src") == plain


@pytest.mark.parametrize("width", [400, 1400])
@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_the_page_fits_narrow_and_wide_screens_in_both_color_schemes(
    page: Page, width: int, scheme: str
) -> None:
    page.set_viewport_size({"width": width, "height": 900})
    page.emulate_media(color_scheme=scheme)
    page.set_input_files("#files", PHOTOGRAPHS[:1])
    answered(page, 1)
    assert page.evaluate("document.documentElement.scrollWidth") <= width
    ground = page.evaluate("getComputedStyle(document.body).backgroundColor")
    assert ground == ("rgb(250, 250, 250)" if scheme == "light" else "rgb(24, 24, 27)")


@pytest.mark.parametrize("width", [400, 1400])
@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_axe_finds_no_accessibility_faults(
    page: Page, tmp_path: Path, width: int, scheme: str
) -> None:
    axe = pytest.importorskip("axe_playwright_python.sync_playwright").Axe()
    page.set_viewport_size({"width": width, "height": 900})
    page.emulate_media(color_scheme=scheme)

    def violations() -> list[tuple[str, str]]:
        found = axe.run(page).response["violations"]
        return [(rule["id"], node["html"][:100]) for rule in found for node in rule["nodes"]]

    assert violations() == []  # empty
    (tmp_path / "damaged.jpg").write_bytes(b"no")
    page.set_input_files("#files", [*PHOTOGRAPHS[:2], str(tmp_path / "damaged.jpg")])
    answered(page, 3)
    page.click(".explain >> nth=0")
    page.wait_for_selector(".explain[aria-pressed=true]")
    assert violations() == []  # with labels, a map and an error


def test_a_busy_service_is_asked_again(page: Page) -> None:
    refused = 0

    def busy(route: Route) -> None:
        nonlocal refused
        if refused < 2:
            refused += 1
            route.fulfill(
                status=503,
                headers={"Retry-After": "0.05"},
                json={"error": {"status": 503, "code": "loading", "message": "loading"}},
            )
        else:
            route.continue_()

    page.route("**/v1/predict*", busy)
    page.set_input_files("#files", PHOTOGRAPHS[0])
    assert " %" in answered(page, 1)[0]
    assert refused == 2


def test_a_key_is_asked_for_and_kept(browser: Any, tmp_path: Path) -> None:
    weights = write_weights(tmp_path / "small.safetensors")
    model = Classifier(weights=weights, engine="onnxruntime")
    with running(create_app(model, Settings(key="abc"))) as service:
        page = browser.new_page()
        page.goto(service.url)
        page.fill("#key", "abc")
        page.keyboard.press("Enter")
        expect(page.locator("#about")).to_contain_text("classes")
        page.set_input_files("#files", PHOTOGRAPHS[0])
        assert " %" in answered(page, 1)[0]
        page.close()


def test_the_policy_has_no_exceptions(own: Running) -> None:
    policy = own.client.get("/").headers["Content-Security-Policy"]
    assert policy.startswith("default-src 'none'; script-src 'self'; style-src 'self'")
    assert "unsafe" not in policy
    assert "*" not in policy
