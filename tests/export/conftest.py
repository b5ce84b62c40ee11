"""Fixtures of the export's tests."""

import pytest

from support.traces import keep_traces


@pytest.fixture(scope="session", autouse=True)
def _traces(request):
    keep_traces(request.config)
