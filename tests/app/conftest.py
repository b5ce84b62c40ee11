"""Fixtures of the server's tests: functions that start a server and wait for a job."""

import pytest

from support import browser as browsers
from support import servers


@pytest.fixture(scope="session")
def start():
    """Function that starts `segue serve` in a process of its own."""
    return servers.served


@pytest.fixture(scope="session")
def here():
    """Function that starts a server in this process."""
    return servers.local


@pytest.fixture(scope="session")
def finished():
    """Function that returns a job when it is over."""
    return servers.wait


@pytest.fixture(scope="module")  # Playwright's event loop must not outlive the tests of the page
def browser():
    """Chromium."""
    with browsers.launched() as made:
        yield made


@pytest.fixture(scope="module")
def served(tmp_path_factory):
    """HTTP client of a server with the shipped bundles."""
    with servers.served(tmp_path_factory.mktemp("page"), "emoji", "emoji-teacher", "emoji-motion") as (client, _):
        yield client


@pytest.fixture
def site(served):
    """The client of `served`, without a job."""
    for job in served.get("/v1/jobs?limit=200").json()["jobs"]:
        served.post(f"/v1/jobs/{job['id']}/cancel")
        servers.wait(served, job["id"])
        served.delete(f"/v1/jobs/{job['id']}").raise_for_status()
    return served


@pytest.fixture
def page(browser, site):
    """The page in a window of 1280 x 800 pixels."""
    with browsers.opened(browser, site.base_url) as made:
        yield made
