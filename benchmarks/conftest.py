"""Options and output of `pytest benchmarks`."""

import pytest

from .report_lines import machine_line
from .timing import machine


def pytest_addoption(parser):
    """Add `--compiled`."""
    parser.addoption(
        "--compiled",
        action="store_true",
        help="also time rivals under torch.compile, whose first calls take minutes",
    )


def pytest_xdist_auto_num_workers():
    """Time one thing at a time, in one process."""
    return 0


@pytest.hookimpl(tryfirst=True)
def pytest_configure(config):
    """Show a median, its spread and how often it was timed; the other columns on request.

    And no warning above them that a rival's own code causes: Norse scripts its functions.
    """
    config.addinivalue_line("filterwarnings", "ignore::FutureWarning:torch.jit.*")
    if getattr(config.option, "benchmark_columns", "") is None:
        config.option.benchmark_columns = ["median", "iqr", "rounds"]
        config.option.benchmark_sort = "median"


def pytest_terminal_summary(terminalreporter):
    """Say on what machine the figures were found."""
    terminalreporter.write_line(f"measured on {machine_line(machine())}")


def pytest_generate_tests(metafunc):
    """Give tests of a rival's layer those that are installed, the slow ones on request."""
    if "contender" in metafunc.fixturenames:
        from .test_speed import contenders

        slow = metafunc.config.getoption("compiled")
        metafunc.parametrize("contender", contenders(slow), ids=str)
