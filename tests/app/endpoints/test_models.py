"""The endpoints of bundles: their facts, and the names that they can draw."""

import re

import pytest


@pytest.fixture(scope="module")
def client(here, exported, tmp_path_factory):
    with here(tmp_path_factory.mktemp("models"), "emoji", "emoji-teacher", "emoji-motion", exported) as (made, _):
        yield made


def test_a_model_tells_its_sizes_and_what_it_listens_to(client):
    models = {model["id"]: model for model in client.get("/v1/models").json()["data"]}
    for name, guided in (("emoji", False), ("emoji-teacher", True)):
        found = models[name]
        assert found["sizes"] == [[128, 128]] == [[found["width"], found["height"]]]
        assert (found["kind"], found["guided"], found["negative"]) == ("picture", guided, guided)
        assert (found["takes_image"], found["references"]) == (True, 0)
        assert client.get(f"/v1/models/{name}").json() == found
        assert re.fullmatch(r"[\d,]+ names, such as .+, .+, .+", found["draws"])
    assert models["tiny"]["draws"] == "any text"
    film = models["emoji-motion"]
    assert (film["takes_image"], film["references"]) == (True, 0)
    assert (film["kind"], film["frames"] > 1) == ("video", True)
    assert film["sizes"] == [[film["width"], film["height"]]]


def test_names_complete_what_is_typed(client):
    found = client.get("/v1/prompts", params={"bundle": "emoji", "query": "pizz"}).json()
    assert found["names"][0] == "pizza"
    assert (found["bundle"], found["photographs"]) == ("emoji", False)
    assert "noto" in found["styles"]
    assert client.get("/v1/prompts?query=pizz").json() == found  # the first bundle that draws


def test_an_emoji_is_completed_by_its_name(client):
    assert client.get("/v1/prompts", params={"query": "🍕"}).json()["names"][0] == "pizza"


@pytest.mark.parametrize("limit", [1, 5])
def test_without_a_query_there_are_examples(client, limit):
    assert len(client.get("/v1/prompts", params={"limit": limit}).json()["names"]) == limit


def test_a_bundle_without_names_has_an_empty_list(client):
    found = client.get("/v1/prompts?bundle=tiny&query=pizza").json()
    assert found == {"bundle": "tiny", "names": [], "styles": [], "photographs": False}


@pytest.mark.parametrize(
    ("query", "words"),
    [
        ("bundle=other", "there is no bundle 'other'. Choose emoji or "),
        ("limit=0", "limit = '0': it must be at least 1"),
        ("limit=many", "limit = 'many': it must be a whole number"),
        ("query=" + "x" * 1001, "at most 1000 characters"),
    ],
)
def test_what_cannot_be_listed_is_refused_in_words(client, query, words):
    answer = client.get(f"/v1/prompts?{query}")
    assert answer.status_code == 422
    assert words in answer.json()["error"]["message"]
    assert answer.json()["error"]["type"] == "UsageError"
