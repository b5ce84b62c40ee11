"""The names under which a server is reached."""


def test_a_server_answers_under_a_name_that_it_was_given(here, tmp_path):
    with here(tmp_path, "emoji", hosts=("Host.Docker.internal",)) as (client, _):
        for host in ("host.docker.internal:8421", "HOST.docker.internal", "127.0.0.1:8421", "localhost"):
            assert client.get("/v1/models", headers={"host": host}).status_code == 200, host
        answer = client.get("/v1/models", headers={"host": "evil.example:8421"})
        assert answer.status_code == 403
        assert "start the server with --allow-host evil.example" in answer.json()["error"]["message"]
        origin = {"host": "host.docker.internal", "origin": "http://evil.example"}
        assert client.get("/v1/models", headers=origin).status_code == 403


def test_the_option_of_the_message_is_one_of_the_command(start, tmp_path):
    with start(tmp_path, "emoji", options=["--allow-host", "box.example", "--allow-host", "other"]) as (client, _):
        for host in ("box.example", "other:80"):
            assert client.get("/v1/models", headers={"host": host}).status_code == 200
