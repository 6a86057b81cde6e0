"""One seed for all random inputs of a run of the tests, whatever number of processes share it.

A plugin, loaded by conftest.py. The seed is drawn where the run starts and handed to the processes
of pytest-xdist; it stands in the report's header, with every failure, and at the end, also under
``-q``. The same inputs come back with ``pytest --seed=...``.
"""

from __future__ import annotations

import random
import zlib
from collections.abc import Generator
from typing import Any

import pytest


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--seed", type=int, default=None, help="seed of the random inputs")


@pytest.hookimpl(tryfirst=True)
def pytest_configure(config: pytest.Config) -> None:
    if hasattr(config, "workerinput"):  # a process of pytest-xdist
        config.option.seed = config.workerinput["seed"]
    elif config.option.seed is None:
        config.option.seed = random.SystemRandom().randrange(2**31)


@pytest.hookimpl(optionalhook=True)
def pytest_configure_node(node: Any) -> None:
    node.workerinput["seed"] = node.config.option.seed


def pytest_report_header(config: pytest.Config) -> str:
    return inputs(config)


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item: pytest.Item) -> Generator[None, pytest.TestReport, Any]:
    report = yield
    if report.failed:
        report.sections.append(("Inputs", inputs(item.config)))
    return report


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    terminalreporter.write_line(inputs(terminalreporter.config))


def inputs(config: pytest.Config) -> str:
    return f"inputs: --seed={config.option.seed}"


def seed_of(item: pytest.Item) -> int:
    """The seed of one test, from the run's and the test's name."""
    seed: int = item.config.option.seed
    return seed ^ zlib.crc32(item.nodeid.encode())
