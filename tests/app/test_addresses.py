"""The addresses that `segue serve` prints can be opened."""

import httpx
import pytest

from segue.app.addresses import addresses


@pytest.mark.parametrize(
    ("host", "expected"),
    [
        ("127.0.0.1", ["http://127.0.0.1:8421"]),
        ("localhost", ["http://localhost:8421"]),
        ("::1", ["http://[::1]:8421"]),
        ("192.168.1.5", ["http://192.168.1.5:8421"]),
    ],
)
def test_one_address_stays_as_it_is(host, expected):
    assert addresses(host, 8421) == expected


@pytest.mark.parametrize(("host", "loopback"), [("0.0.0.0", "127.0.0.1"), ("", "127.0.0.1"), ("::", "[::1]")])
def test_every_address_is_told_as_those_that_can_be_opened(host, loopback):
    found = addresses(host, 8421)
    assert found[-1] == f"http://{loopback}:8421"
    assert len(set(found)) == len(found) <= 2
    assert not {"http://0.0.0.0:8421", "http://[::]:8421"} & set(found)


def test_without_a_network_only_the_loopback_address_is_told(monkeypatch):
    monkeypatch.setattr("segue.app.addresses._main", lambda family: None)
    assert addresses("0.0.0.0", 80) == ["http://127.0.0.1:80"]


def test_a_server_for_every_address_answers_at_the_ones_that_it_tells(start, tmp_path):
    with start(tmp_path, "emoji", options=["--host", "0.0.0.0", "--token", "secret"]) as (client, _):
        assert "0.0.0.0" not in str(client.base_url)
        assert httpx.get(f"{client.base_url}/health").json()["status"] == "ok"
