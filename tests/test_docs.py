"""The documentation says what the code says."""

import re
from pathlib import Path

import pytest

from daemon.tools import config_reference, man_page

ROOT = Path(__file__).parent.parent
DOCS = ROOT / "docs"
PAGES = (*sorted(DOCS.glob("*.md")), ROOT / "README.md", ROOT / "README.pt-BR.md")


def test_the_configuration_page_is_what_the_settings_model_says() -> None:
    assert (DOCS / "configuration.md").read_text() == config_reference.reference(), "run `make docs`"


def test_the_manual_page_is_what_the_commands_say() -> None:
    assert (DOCS / "upcall.1").read_text() == man_page.page(), "run `make docs`"


def test_the_index_leads_to_every_page() -> None:
    linked = re.findall(r"\]\(([\w-]+\.md)\)", (DOCS / "README.md").read_text())

    assert sorted(linked) == sorted({page.name for page in DOCS.glob("*.md")} - {"README.md"})


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_links_lead_somewhere(page: Path) -> None:
    links = re.findall(r"\]\(([^)#]+)(?:#[^)]*)?\)", page.read_text())

    assert [link for link in links if "://" not in link and not (page.parent / link).exists()] == []


def test_the_benchmarks_page_has_every_script() -> None:
    page = (DOCS / "benchmarks.md").read_text()
    scripts = [file for file in (ROOT / "benchmarks").glob("*.py") if "__main__" in file.read_text()]

    assert [script.name for script in scripts if f"`{script.name}`" not in page] == []
