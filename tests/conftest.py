"""What all tests share: the real models, fetched once, and a plain word for what a machine lacks.

`UPCALL_TEST_STORE` names the folder of the models (by default in the user's cache). With `UPCALL_TEST_REQUIRE=all` a
test that would be skipped fails instead, so that a machine meant to run everything cannot quietly run less.
"""

import os
from collections.abc import Callable, Generator
from pathlib import Path
from typing import TypeVar

import platformdirs
import pytest

from models.store import Store, StoreError

pytest_plugins = ["tests.emulators.servers", "tests.emulators.upstream"]

Require = Callable[[object, str], None]

_ALL = os.environ.get("UPCALL_TEST_REQUIRE") == "all"


@pytest.fixture(scope="session")
def require() -> Require:
    """`require(condition, reason)` skips the test unless the condition holds."""

    def check(condition: object, reason: str) -> None:
        if not condition:
            pytest.skip(reason)

    return check


@pytest.fixture(scope="session")
def store() -> Store:
    """A store that outlives the run, so that models are fetched once per machine."""
    folder = os.environ.get("UPCALL_TEST_STORE")
    return Store(Path(folder) if folder else platformdirs.user_cache_path("upcall") / "test-models")


@pytest.fixture(scope="session")
def smollm2(store: Store, require: Require) -> Path:
    return _pulled(store, "smollm2-135m", require)


@pytest.fixture(scope="session")
def use_encoder(store: Store, require: Require) -> Path:
    return _pulled(store, "use-multilingual", require)


@pytest.fixture(scope="session")
def data(require: Require) -> Path:
    """The folder of the data files, for training and evaluation."""
    require("UPCALL_DATA" in os.environ, "UPCALL_DATA is not set: it names the folder of the data files")
    return Path(os.environ["UPCALL_DATA"])


def _pulled(store: Store, name: str, require: Require) -> Path:
    try:
        return store.pull(name)
    except StoreError as error:
        require(False, str(error))
        raise


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(
    item: pytest.Item, call: pytest.CallInfo[None]
) -> Generator[None, pytest.TestReport, pytest.TestReport]:
    return _unskipped((yield))


@pytest.hookimpl(wrapper=True)
def pytest_make_collect_report(
    collector: pytest.Collector,
) -> Generator[None, pytest.CollectReport, pytest.CollectReport]:
    return _unskipped((yield))


Report = TypeVar("Report", pytest.TestReport, pytest.CollectReport)


def _unskipped(report: Report) -> Report:
    if _ALL and report.skipped and not hasattr(report, "wasxfail"):
        reason = report.longrepr[2] if isinstance(report.longrepr, tuple) else report.longrepr
        report.outcome = "failed"
        report.longrepr = f"UPCALL_TEST_REQUIRE=all, but: {reason}"
    return report
