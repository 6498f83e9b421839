"""The dashboard in a real browser, beside a daemon that answers real requests."""

import json
import os
import time
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any

import pytest
from selenium import webdriver
from selenium.webdriver.chrome.options import Options
from selenium.webdriver.chrome.service import Service
from selenium.webdriver.common.by import By
from selenium.webdriver.common.keys import Keys
from selenium.webdriver.remote.webdriver import WebDriver
from selenium.webdriver.support.ui import WebDriverWait

from daemon.accounts.ledger import Record, insert, open_for_writing
from tests.conftest import Require
from tests.daemon.conftest import StartDaemon
from tests.daemon.harness import Daemon, client

CHROMIUM, DRIVER = Path("/usr/bin/chromium"), Path("/usr/bin/chromedriver")
AXE = Path(__file__).parent / "node_modules" / "axe-core" / "axe.min.js"
PATIENCE = 240.0
"""Seconds; a deadline that only a hang can reach."""
WIDTHS = (390, 820, 1440)
FILLS_ITS_PLACE = """
    const box = (name) => document.querySelector(name).getBoundingClientRect();
    const [place, line] = [box("#chart"), box("#chart .grid")];
    return Math.abs(place.right - line.right) < 2 && line.width > 0.8 * place.width;
"""

Open = Callable[..., WebDriver]
"""`open_page(daemon, language="en", dark=False)`: a browser at the daemon's page, once that shows figures."""


@contextmanager
def _browser(profile: Path, language: str) -> Iterator[WebDriver]:
    options = Options()
    options.binary_location = str(CHROMIUM)
    for flag in (
        "headless", "no-sandbox", "disable-gpu", "disable-quic", "no-first-run", "disable-background-networking",
        "disable-component-update", "disable-sync", "no-proxy-server", f"user-data-dir={profile}", f"lang={language}",
        f"accept-lang={language}", "window-size=1440,1400",
    ):  # fmt: skip
        options.add_argument(f"--{flag}")
    options.set_capability("goog:loggingPrefs", {"browser": "ALL", "performance": "ALL"})
    driver = webdriver.Chrome(options=options, service=Service(str(DRIVER), env={**os.environ, "LANGUAGE": language}))
    try:
        yield driver
    finally:
        driver.quit()


@pytest.fixture
def open_page(tmp_path: Path, require: Require) -> Iterator[Open]:
    require(CHROMIUM.exists() and DRIVER.exists(), "there is no /usr/bin/chromium with its driver")
    require(AXE.exists(), "axe-core is not installed; `make test-deps` does that")
    contexts = []

    def start(daemon: Daemon, language: str = "en-US", ready: bool = True) -> WebDriver:
        context = _browser(tmp_path / f"profile-{len(contexts)}", language)
        contexts.append(context)
        driver = context.__enter__()
        driver.get(f"{daemon.url}/")
        if ready:
            _until(driver, lambda: _text(driver, "#requests").isdigit())
            _until(driver, lambda: driver.find_element(By.ID, "privacy").is_enabled())
        return driver

    yield start
    for context in contexts:
        context.__exit__(None, None, None)


def test_the_page_follows_requests_as_they_are_answered(upcall: Daemon, open_page: Open) -> None:
    page = open_page(upcall)
    before = int(_text(page, "#requests"))

    client(upcall).chat.completions.create(model="auto", messages=[{"role": "user", "content": "Hi"}], max_tokens=4)

    _until(page, lambda: int(_text(page, "#requests")) == before + 1)
    _until(page, lambda: page.find_elements(By.CSS_SELECTOR, "#decisions tr"))
    row = page.find_element(By.CSS_SELECTOR, "#decisions tr")
    assert "smollm2-135m" in row.text
    assert "the router expects the local model to do well enough" in row.text
    assert row.find_element(By.CSS_SELECTOR, "td.score svg").get_attribute("aria-label").startswith("score 0.")
    assert _text(page, "#share") == "100%"
    _assert_quiet(page, upcall)


def test_a_prompt_can_be_tried_and_is_explained(upcall: Daemon, open_page: Open) -> None:
    page = open_page(upcall)

    page.find_element(By.ID, "prompt").send_keys("Say hello.")
    page.find_element(By.ID, "send").click()

    _until(page, lambda: page.find_element(By.ID, "answer").get_attribute("aria-busy") == "false")
    assert _text(page, "#answer")
    assert "here · smollm2-135m · the router expects" in _text(page, "#decided")
    _assert_quiet(page, upcall)


def test_the_privacy_switch_takes_effect(start_daemon: StartDaemon, open_page: Open) -> None:
    daemon = start_daemon()
    page = open_page(daemon)
    switch = page.find_element(By.ID, "privacy")
    assert not switch.is_selected()

    switch.send_keys(Keys.SPACE)  # as a keyboard would

    _until(page, lambda: daemon.call("GET", "/healthz")["privacy"] is True)
    _until(page, switch.is_selected)
    assert daemon.cli("privacy", "status").stdout == "privacy mode is on\n"
    _assert_quiet(page, daemon)


def test_without_a_ledger_the_page_says_so_and_all_else_works(start_daemon: StartDaemon, open_page: Open) -> None:
    daemon = start_daemon(LEDGER__ENABLED="false")
    page = open_page(daemon, ready=False)
    switch = page.find_element(By.ID, "privacy")
    _until(page, switch.is_enabled)
    _until(page, lambda: "There is no ledger" in _text(page, "#notice"))

    switch.send_keys(Keys.SPACE)

    _until(page, lambda: daemon.call("GET", "/healthz")["privacy"] is True)
    assert "no answer" not in _text(page, "#health")


def test_the_slider_sets_how_much_may_go_up_until_the_settings_say_otherwise(
    start_daemon: StartDaemon, open_page: Open
) -> None:
    daemon = start_daemon()
    page = open_page(daemon)
    _until(page, lambda: page.find_element(By.ID, "apply").is_enabled())
    before = daemon.call("GET", "/upcall/routing")
    assert before["cloud_share"] == 0.2

    slider = page.find_element(By.ID, "cloud-share")
    for _ in range(30):
        slider.send_keys(Keys.ARROW_RIGHT)
    _until(page, lambda: "about 50%" in _text(page, "#expected"))
    page.find_element(By.ID, "apply").click()

    _until(page, lambda: daemon.call("GET", "/upcall/routing")["cloud_share"] == 0.5)
    assert daemon.call("GET", "/upcall/routing")["threshold"] < before["threshold"]
    _until(page, lambda: _text(page, "#applied") == "Applied.")
    _assert_quiet(page, daemon)


def test_a_call_that_a_kill_cut_off_is_shown_with_the_others(
    start_daemon: StartDaemon, open_page: Open, tmp_path: Path
) -> None:
    daemon = start_daemon()
    (ledger,) = tmp_path.rglob("ledger.db")
    with closing(open_for_writing(ledger)) as connection:
        # As `Budget` books it at the next start.
        insert(connection, Record(id="ab" * 16, time=time.time(), wire="openai", outcome="lost", route="cloud"))
        connection.commit()
    page = open_page(daemon)

    _until(page, lambda: page.find_elements(By.CSS_SELECTOR, "#decisions tr"))
    assert "lost" in page.find_element(By.CSS_SELECTOR, "#decisions tr").text
    _assert_quiet(page, daemon)


def test_a_verdict_on_a_decision_is_kept(upcall: Daemon, open_page: Open) -> None:
    asked = client(upcall).chat.completions.with_raw_response.create(
        model="auto", messages=[{"role": "user", "content": "Hi"}], max_tokens=4
    )
    id = asked.headers["x-upcall-request-id"]
    page = open_page(upcall)
    wrong = f"#decisions tr[data-id='{id}'] td.verdict button:last-child"
    _until(page, lambda: page.find_elements(By.CSS_SELECTOR, wrong))

    page.find_element(By.CSS_SELECTOR, wrong).click()

    _until(page, lambda: upcall.call("GET", f"/upcall/decisions/{id}")["verdict"] == "wrong")
    _until(page, lambda: page.find_element(By.CSS_SELECTOR, wrong).get_attribute("aria-pressed") == "true")
    _assert_quiet(page, upcall)


def test_it_comes_in_brazilian_portuguese(upcall: Daemon, open_page: Open) -> None:
    page = open_page(upcall, "pt-BR")

    assert page.find_element(By.TAG_NAME, "html").get_attribute("lang") == "pt-BR"
    assert _text(page, "#sum-title") == "Em resumo"
    assert page.find_element(By.ID, "prompt").get_attribute("placeholder") == "Por que o céu é azul?"
    # Both languages say the same things.
    keys = page.execute_async_script(
        "const done = arguments[0]; import('/web/text.js').then(({ languages }) => "
        "done(Object.values(languages).map((words) => Object.keys(words).sort().join())));"
    )
    assert len(keys) == 2
    assert len(set(keys)) == 1


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_the_page_is_accessible_at_every_width(upcall: Daemon, open_page: Open, scheme: str, tmp_path: Path) -> None:
    page = open_page(upcall)
    page.execute_cdp_cmd(
        "Emulation.setEmulatedMedia", {"features": [{"name": "prefers-color-scheme", "value": scheme}]}
    )
    for width in WIDTHS:
        metrics = {"width": width, "height": 1400, "deviceScaleFactor": 1, "mobile": width < 500}
        page.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", metrics)
        _until(page, lambda width=width: page.execute_script("return innerWidth") == width)
        assert page.execute_script("return document.documentElement.scrollWidth") <= width, "it scrolls sideways"
        _until(page, lambda: page.execute_script(FILLS_ITS_PLACE))
        violations = _axe(page)
        assert not violations, json.dumps(violations, indent=1)[:4000]
        picture = tmp_path / f"{scheme}-{width}.png"
        assert page.save_screenshot(str(picture))
        if folder := os.environ.get("UPCALL_SCREENSHOTS"):
            (Path(folder) / picture.name).write_bytes(picture.read_bytes())


def test_who_uses_the_keyboard_alone_reaches_every_control(upcall: Daemon, open_page: Open) -> None:
    page = open_page(upcall)
    wanted = {"privacy", "prompt", "route", "send", "cloud-share", "apply"}
    _until(page, lambda: page.find_element(By.ID, "apply").is_enabled())
    reached = set()
    for _ in range(60):
        page.switch_to.active_element.send_keys(Keys.TAB)
        reached.add(page.switch_to.active_element.get_attribute("id"))

    assert wanted <= reached


def _text(page: WebDriver, selector: str) -> str:
    return page.find_element(By.CSS_SELECTOR, selector).text


def _until(page: WebDriver, condition: Callable[[], object]) -> None:
    WebDriverWait(page, PATIENCE, 0.05).until(lambda _: condition())


def _axe(page: WebDriver) -> list[dict[str, Any]]:
    # By the debugger's own channel: the page's content policy rightly refuses a script that is put into it.
    page.execute_cdp_cmd("Runtime.evaluate", {"expression": AXE.read_text()})
    found = page.execute_async_script("axe.run().then(arguments[0])")["violations"]
    return [{"rule": one["id"], "nodes": [node["html"] for node in one["nodes"]]} for one in found]


def _assert_quiet(page: WebDriver, daemon: Daemon) -> None:
    """No error on the console, and no request to anywhere but the daemon."""
    assert [entry for entry in page.get_log("browser") if entry["level"] == "SEVERE"] == []
    messages = [json.loads(entry["message"])["message"] for entry in page.get_log("performance")]
    sent = [one["params"]["request"]["url"] for one in messages if one["method"] == "Network.requestWillBeSent"]
    # The browser's own first page is shown before ours, and comes from the browser itself.
    asked = [url for url in sent if not url.startswith(("chrome://", "data:"))]
    assert asked
    assert [url for url in asked if not url.startswith(f"{daemon.url}/")] == []
