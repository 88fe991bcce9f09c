"""Pages as people meet them: a headless Chromium, and axe-core, which looks for what keeps people out."""

import os
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

BROWSERS = ("chromium", "chromium-browser", "google-chrome")
AXE = Path(__file__).parent / "node" / "node_modules" / "axe-core" / "axe.min.js"
PHONE = {"viewport": {"width": 390, "height": 844}, "is_mobile": True, "has_touch": True}
WAYS = {  # in which a page is looked at
    f"{scheme}, {name}": {"color_scheme": scheme, **size}
    for scheme in ("light", "dark")
    for name, size in {"desk": {"viewport": {"width": 1280, "height": 900}}, "phone": PHONE}.items()
}


@pytest.fixture(scope="module")
def browser():
    """A headless Chromium of this machine; CHROMIUM names another."""
    found = os.environ.get("CHROMIUM") or next(filter(None, map(shutil.which, BROWSERS)), None)
    if found is None:
        pytest.skip(f"no browser: none of {', '.join(BROWSERS)} is installed; on Debian, apt-get install chromium")
    driver = pytest.importorskip("playwright.sync_api", reason="no playwright; it is in the group dev")
    with driver.sync_playwright() as playwright:
        chromium = playwright.chromium.launch(
            executable_path=found,
            args=["--no-sandbox", "--use-fake-device-for-media-stream"],  # a container's root; a camera
        )
        yield chromium
        chromium.close()


@pytest.fixture
def open_page(browser) -> Iterator[Callable]:
    """Opens a file or an address: the tab, with all that its console said and every request that it made."""
    contexts = []

    def opened(page: Path | str, **settings):
        context = browser.new_context(**settings)
        contexts.append(context)
        tab = context.new_page()
        tab.said, tab.requested = [], []
        tab.on("console", lambda message: tab.said.append(message.text))
        tab.on("pageerror", lambda error: tab.said.append(str(error)))
        tab.on("request", lambda request: tab.requested.append(request.url))
        tab.goto(page.as_uri() if isinstance(page, Path) else page)
        return tab

    yield opened
    for context in contexts:
        context.close()


def focused(tab) -> str:
    """What has the focus: its id, or else the place of a card, or else the words of what is folded."""
    return tab.evaluate(
        "(({ id, dataset, localName, textContent }) => id || dataset.place || (localName === 'summary' && textContent))"
        "(document.activeElement)"
    )


def findings(tab) -> list[str]:
    """What axe-core finds serious or critical on a page as it is, each with what to do about it.

    Rules are those of WCAG 2.2 at levels A and AA and axe-core's own good practice.
    """
    if not AXE.is_file():
        pytest.skip("axe-core is not here: `npm ci --ignore-scripts` in tests/node installs it")
    tab.evaluate(AXE.read_text(encoding="utf-8"))
    found = tab.evaluate("axe.run({ rules: { 'target-size': { enabled: true } } })")
    assert len(found["passes"]) > 15, "it has looked"
    return [
        f"{rule['impact']}: {rule['help']}: {node['html'][:200]}: {node['failureSummary']}"
        for rule in found["violations"]
        if rule["impact"] in ("serious", "critical")
        for node in rule["nodes"]
    ]
