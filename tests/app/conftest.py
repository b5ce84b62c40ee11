"""Fixtures of the server's tests: functions that start a server and wait for a job."""

import pytest

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
