"""Makes the README's picture of the dashboard: `python -m tests.daemon.browser.picture docs/dashboard.png`.

A daemon answers made-up prompts, hard ones by a second daemon with a larger local model that stands in for GPT-4. It
takes Chromium, and `upcall pull smollm2-135m qwen2.5-coder-1.5b use-multilingual`.
"""

import sys
import tempfile
from contextlib import ExitStack
from pathlib import Path

from models.store import Store
from tests.daemon.browser.test_dashboard import _browser, _text, _until
from tests.daemon.harness import client, running_daemon, wait_until

WIDTH, HEIGHT = 1083, 1500
PROMPTS = (
    "Say hello in one short sentence.",
    "Qual é a capital do Brasil?",
    "List three things to take on a day at the beach.",
    "Translate 'good morning' into French.",
    "A factory makes 12% defective parts. A test finds 95% of the defective ones and wrongly flags 3% of the good "
    "ones. What share of the flagged parts is really defective? Show each step.",
    "Name a fruit that is yellow.",
    "Prove that there are infinitely many primes of the form 4k + 3.",
    "What colour is the sky at noon?",
    "Escreva um bilhete de parabéns para a minha avó.",
    "Which is heavier, a kilogram of iron or a kilogram of wool?",
    "Design a lock-free queue in C++20 with a bounded ring buffer, and give the memory ordering of every operation.",
    "My card is 4111 1111 1111 1111: prove step by step that its check digit is right.",
    "Give me a word that rhymes with tree.",
)


def main() -> None:
    with ExitStack() as stack:
        home = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        for name in ("here", "cloud", "browser"):
            (home / name).mkdir()
        models = Store().root
        larger = {"LOCAL__MODEL": "qwen2.5-coder-1.5b", "PRIVACY__MODE": "true"}
        cloud = stack.enter_context(running_daemon(home / "cloud", models, larger))
        settings = {
            **{"CLOUD__BASE_URL": f"{cloud.url}/v1", "CLOUD__KEY": "none", "LOCAL__MODEL": "smollm2-135m"},
            **{"ROUTING__CLOUD_SHARE": "0.4", "BUDGET__DAILY_USD": "1.5"},
        }
        here = stack.enter_context(running_daemon(home / "here", models, settings))
        for daemon in (cloud, here):
            wait_until(lambda daemon=daemon: daemon.call("GET", "/healthz")["local"]["state"] == "ready", 300)
        for prompt in PROMPTS:
            client(here).chat.completions.create(
                model="auto", messages=[{"role": "user", "content": prompt}], max_tokens=64, timeout=300
            )
        page = stack.enter_context(_browser(home / "browser", "en-US"))
        metrics = {"width": WIDTH, "height": HEIGHT, "deviceScaleFactor": 1, "mobile": False}
        page.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", metrics)
        page.execute_cdp_cmd("Emulation.setScrollbarsHidden", {"hidden": True})
        page.get(f"{here.url}/")
        _until(page, lambda: _text(page, "#requests") == str(len(PROMPTS)))
        _until(page, lambda: page.find_element("id", "apply").is_enabled())
        _until(page, lambda: "MB" in _text(page, "#parts"))
        page.save_screenshot(sys.argv[1])


if __name__ == "__main__":
    main()
