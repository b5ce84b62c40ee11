"""OpenAI's endpoint that changes pictures, driven by OpenAI's Python client: masks, streams, formats, refusals."""

import base64
import dataclasses
import io

import numpy as np
import openai
import pytest
from PIL import Image

import segue
from segue.app.endpoints import edits
from segue.app.endpoints.images_schema import EditsRequest
from segue.app.kept import inputs
from segue.runtime.bundle import families
from support.input_pictures import drawing, hole, opened, png, with_hole

IMAGE, MASK = drawing(), hole()


@pytest.fixture(scope="module")
def http(start, tmp_path_factory):
    """HTTP client of a server that draws emoji."""
    with start(tmp_path_factory.mktemp("edits"), "emoji") as (client, _):
        yield client


@pytest.fixture(scope="module")
def client(http):
    """OpenAI's client. It does not try again, so that a test sees each answer."""
    with openai.OpenAI(base_url=f"{http.base_url}/v1", api_key="none", max_retries=0) as made:
        yield made


def edit(client, image=None, extra=None, **values):
    """Edit with the prompt of these tests; `extra` are keys of Segue or keys that the client does not know."""
    asked = {"image": image or png(IMAGE), "prompt": "a red heart", "extra_body": {"seed": 7} | (extra or {})}
    return client.images.edit(**asked, **values)


def pixels(answer):
    return np.stack([opened(base64.b64decode(one.b64_json)) for one in answer.data])


def test_transparent_pixels_of_the_mask_are_redrawn_and_the_others_keep_the_picture_s(client):
    answer = edit(client, mask=png(with_hole(IMAGE, MASK)), n=2, size="128x128", response_format="b64_json")
    with segue.open("emoji") as model:
        expected = model.generate("a red heart", seed=7, count=2, image=IMAGE, mask=MASK)
    drawn = pixels(answer)
    assert np.array_equal(drawn, expected)
    assert np.array_equal(drawn[:, MASK == 0], np.stack([IMAGE[MASK == 0]] * 2))
    assert not np.array_equal(drawn[0], drawn[1])
    assert (answer.size, answer.output_format, answer.seed, answer.warnings) == ("128x128", "png", 7, [])


def test_without_a_mask_the_whole_picture_is_drawn_anew_and_strength_says_how_much(client):
    with segue.open("emoji") as model:
        for extra in ({}, {"strength": 0.3, "steps": 8, "guidance": 1.5, "negative": "blue"}):
            expected = model.generate("a red heart", seed=7, image=IMAGE, **extra)
            assert np.array_equal(pixels(edit(client, extra=extra))[0], expected)


def test_a_mask_with_a_soft_edge_and_a_strength(client, http):
    answer = edit(client, mask=png(with_hole(IMAGE, MASK)), extra={"feather": 3, "strength": 0.75})
    with segue.open("emoji") as model:
        expected = model.generate("a red heart", seed=7, image=IMAGE, mask=MASK, feather=3, strength=0.75)
    assert np.array_equal(pixels(answer)[0], expected)
    asked = http.get(f"/v1/jobs/{answer.job}").json()["request"]
    assert (asked["feather"], asked["strength"], asked["image"], asked["mask"]) == (3, 0.75, "input.png", "mask.png")
    assert np.array_equal(opened(http.get(f"/v1/jobs/{answer.job}/files/mask.png").content)[..., 0], MASK)


def test_half_transparent_pixels_stay(client):
    mask = with_hole(IMAGE, MASK)
    mask[100:, :, 3] = 1
    assert np.array_equal(pixels(edit(client, mask=png(mask)))[0][100:], IMAGE[100:])


def test_other_formats_and_addresses(client, http):
    answer = edit(client, output_format="webp", output_compression=60, response_format="url")
    data = http.get(answer.data[0].url).content
    assert Image.open(io.BytesIO(data)).format == "WEBP"
    drawn = edit(client, output_format="webp", output_compression=60)
    assert base64.b64decode(drawn.data[0].b64_json) == data


def test_a_stream_sends_unfinished_pictures_and_then_the_picture(client):
    with edit(client, mask=png(with_hole(IMAGE, MASK)), stream=True, partial_images=2) as stream:
        *partial, whole = list(stream)
    assert [event.type for event in partial] == ["image_edit.partial_image"] * 2
    assert [event.partial_image_index for event in partial] == [0, 1]
    assert (whole.type, whole.size, whole.usage.total_tokens) == ("image_edit.completed", "128x128", 0)
    again = edit(client, mask=png(with_hole(IMAGE, MASK)))
    assert base64.b64decode(whole.b64_json) == base64.b64decode(again.data[0].b64_json)


def test_one_image_may_come_as_a_list_and_one_with_an_orientation_is_turned(client):
    turned = io.BytesIO()
    exif = Image.Exif()
    exif[0x0112] = 6  # the camera was held upright
    Image.fromarray(np.rot90(IMAGE)).save(turned, "PNG", exif=exif)
    first, second = edit(client, image=[png(IMAGE)]), edit(client, image=("turned.png", turned.getvalue()))
    assert np.array_equal(pixels(first), pixels(second))


REFUSED = [
    ({"image": [png(IMAGE)] * 2}, "image", "2 images were sent, and emoji takes no references beside the first"),
    ({"image": b"no picture"}, "image", "cannot be read as a picture: its format is unknown"),
    ({"mask": png(IMAGE)}, "mask", "no fully transparent pixel"),
    ({"mask": png(with_hole(IMAGE, MASK)[:64])}, "mask", "the mask has 128x64 pixels, and the picture 128x128"),
    ({"mask": b"no picture"}, "mask", "the mask that was sent cannot be read"),
    ({"extra": {"strength": 0}}, "strength", "strength = 0: it must be above 0"),
    ({"extra": {"strength": "much"}}, "strength", "strength = 'much': it must be a number"),
    ({"extra": {"strength": "NaN"}}, "strength", "it must be a number"),
    ({"extra": {"steps": "1e2"}}, "steps", "it must be a whole number"),
    ({"extra": {"feather": 2}}, None, "feather = 2 softens the edge of a mask. Give mask too"),
    ({"extra": {"colour": "red"}}, "colour", "the key colour is unknown; known are prompt"),
    ({"extra": {"seed": [1, 2]}}, "seed", "the key seed was sent twice"),
    ({"input_fidelity": "high"}, "input_fidelity", "Send strength"),
    ({"markup": png(IMAGE)}, "markup", "send a mask that says where"),
    ({"svg": {"reasoning": "low"}}, "svg", "png, jpeg or webp"),
    ({"background": "transparent"}, "background", "draws no transparency"),
    ({"n": 11}, "n", "n = 11: it must be at most 10"),
    ({"size": "1024x1024"}, "size", "size 1024x1024 (width x height) is not possible"),
    ({"partial_images": 2}, "partial_images", "needs stream = true"),
]


@pytest.mark.parametrize(("values", "param", "words"), REFUSED, ids=[str(row[2])[:40] for row in REFUSED])
def test_what_cannot_be_met_is_refused_by_name(client, values, param, words):
    with pytest.raises(openai.BadRequestError) as caught:
        edit(client, **values)
    assert (caught.value.status_code, caught.value.type, caught.value.param) == (400, "invalid_request_error", param)
    assert words in caught.value.body["message"]
    assert "object at" not in caught.value.body["message"]


@pytest.mark.parametrize(
    ("body", "words"),
    [
        ({"json": {"prompt": "pizza"}}, "the body must be multipart/form-data with image and prompt"),
        ({"data": {"prompt": "pizza"}, "files": {"mask": b"x"}}, "image is missing. Add it"),
        ({"files": {"image": png(IMAGE)}}, "prompt is missing. Add it"),
        ({"data": {"image": "x", "prompt": "pizza"}, "files": {"mask": b"x"}}, "image = 'x': it must be a file"),
        ({"files": [("image[]", b"x")] * 18}, "Too many files"),
        ({"content": b"x", "headers": {"content-type": "multipart/form-data"}}, "Missing boundary"),
        ({"content": b"x", "headers": {"content-type": "multipart/form-data; boundary=y"}}, "Invalid multipart data"),
    ],
)
def test_a_body_that_is_no_form_is_told(http, body, words):
    answer = http.post("/v1/images/edits", **body)
    assert answer.status_code == 400
    assert words in answer.json()["error"]["message"]


def test_a_body_that_is_too_large_is_refused(here, tmp_path):
    with here(tmp_path, "emoji", largest=1000) as (client, _):
        answer = client.post("/v1/images/edits", data={"prompt": "pizza"}, files={"image": bytes(2000)})
        assert answer.status_code == 413


def test_every_value_of_a_form_that_is_no_text_is_read_as_one():
    plain = {name for name, field in EditsRequest.model_fields.items() if any(
        kind in str(field.annotation) for kind in ("int", "float", "bool")
    )}  # fmt: skip
    assert plain == set(edits.PLAIN)


class TestReferences:
    """A bundle that draws from reference pictures."""

    @pytest.fixture
    def asked(self, here, tmp_path, monkeypatch):
        """Function that asks for an edit and returns the job's pictures, of a server whose model takes references."""

        def taking(content):
            return dataclasses.replace(families.family_of(content), references=2)

        with here(tmp_path, "emoji") as (client, runner):
            for module in (edits, inputs):
                monkeypatch.setattr(module, "family_of", taking)
            seen = []

            def submit(kind, name, request, given, feed, told):
                seen.append(given)
                raise segue.UsageError("seen", "Look.")

            monkeypatch.setattr(runner, "submit", submit)

            def ask(files, **values):
                answer = client.post("/v1/images/edits", data={"prompt": "pizza", **values}, files=files)
                return (seen.pop() if seen else None), answer

            yield ask

    def test_all_images_are_references(self, asked):
        given, _ = asked([("image[]", png(IMAGE)), ("image[]", png(drawing(70, 100)))])
        assert (given.image, given.mask) == (None, None)
        assert [one.shape for one in given.references] == [(128, 128, 3), (64, 96, 3)]  # multiples of 16
        assert np.array_equal(given.references[0], IMAGE)

    def test_with_a_strength_or_a_mask_the_first_image_is_the_one_to_begin_with(self, asked):
        both = [("image[]", png(IMAGE)), ("image[]", png(IMAGE[::-1].copy()))]
        for files, values in ((both, {"strength": "0.5"}), ([*both, ("mask", png(with_hole(IMAGE, MASK)))], {})):
            given, _ = asked(files, **values)
            assert np.array_equal(given.image, IMAGE)
            assert len(given.references) == 1
            assert np.array_equal(given.references[0], IMAGE[::-1])
        assert np.array_equal(given.mask, MASK)

    def test_more_than_it_takes_are_refused_before_they_are_read(self, asked):
        given, answer = asked([("image[]", b"no picture")] * 3)
        assert given is None
        assert "3 reference pictures were given" in answer.json()["error"]["message"]


@pytest.mark.slow  # it exports FLUX.2-klein
def test_a_model_of_references_draws_from_all_images(here, klein_bundle, tmp_path):
    first, second = drawing(), drawing(96, 64)[::-1].copy()
    files = [("image[]", png(first)), ("image[]", png(second))]
    values = {"prompt": "a red heart", "seed": "7", "steps": "2"}
    with here(tmp_path, klein_bundle) as (client, _), segue.open(klein_bundle) as model:
        (found,) = client.get("/v1/models").json()["data"]
        assert (found["takes_image"], found["references"]) == (True, 4)
        for extra, begins in ({}, False), ({"strength": "0.5"}, True):
            answer = client.post("/v1/images/edits", data=values | extra, files=files)
            assert answer.status_code == 200, answer.text
            given = {"image": first, "strength": 0.5, "references": [second]} if begins else {}
            given = given or {"references": [first, second]}
            expected = model.generate("a red heart", seed=7, steps=2, **given)
            assert np.array_equal(opened(base64.b64decode(answer.json()["data"][0]["b64_json"])), expected)
        kept = client.get(f"/v1/jobs/{answer.json()['job']}").json()["request"]
        assert (kept["image"], kept["references"]) == ("input.png", ["reference-1.png"])
        refused = client.post("/v1/images/edits", data=values, files=[("image[]", png(second))] * 5)
        assert "5 reference pictures were given" in refused.json()["error"]["message"]
