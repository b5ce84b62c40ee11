import dataclasses
import json

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from segue.errors import BundleError
from segue.runtime.bundle import bundle_json
from segue.runtime.bundle import manifest as m
from segue.runtime.bundle.reader import shipped


def parse(table):
    return bundle_json.parse(json.dumps(table).encode(), "bundle.json")


@pytest.fixture
def table(content):
    return json.loads(bundle_json.dump(content))


def put(table, path, value):
    *folders, last = path.split(".")
    for name in folders:
        table = table[name]
    table[last] = value


def test_a_manifest_survives_dump_and_parse(content):
    full = dataclasses.replace(
        content,
        sizes=dataclasses.replace(content.sizes, trained=((32, 32), (16, 64))),
        prompts="tokenizer/tokenizer.json",
        parity=(m.Parity("transformer", {"x": (2, 3)}, 1e-6, None, 1e-4), m.Parity("vae", {}, None, None, None)),
    )
    assert bundle_json.parse(bundle_json.dump(full), "bundle.json") == full


@pytest.mark.parametrize(
    ("path", "value", "said"),
    [
        ("schema", 2, "schema 2; this Segue reads up to 1. Use a newer Segue"),
        ("schema", 0, "never existed"),
        ("schema", True, "no schema number"),
        ("surprise", 1, "surprise"),
        ("name", 3, "should be str"),
        ("sampler.steps", 0, r"sampler\.steps = 0"),
        ("sampler.steps", True, "should be int"),
        ("sampler.sigmas", [1.0, 0.5], "levels that decrease within"),
        ("sampler.sigmas", [1.0, 0.5, 0.5, 0.2], "levels that decrease within"),
        ("sampler.sigmas", [1.0, 0.5, 0.2, 0.0], "levels that decrease within"),
        ("sampler.sigmas", [1.1, 0.5, 0.2, 0.1], "levels that decrease within"),
        ("sampler.shift", -1.0, r"sampler\.shift = -1"),
        ("sampler.grid", "unipc", "which only videos have"),
        ("sampler.shift", 10**400, "finite float"),
        ("latents.scaling", 0.0, r"latents\.scaling = 0"),
        ("sizes.multiple", 8, "multiples"),
        ("sizes.minimum", 24, "multiples"),
        ("sizes.default", [128, 128], "outside its own range"),
        ("sizes.default", [32], "should be list"),
        ("sizes.trained", [[32, 128]], "outside its own range"),
        ("sizes.trained", [[32, 40]], "multiples"),
        ("sizes.trained", [32, 32], "should be list"),
        ("sizes.trained", [[32, 32]] * 65, "65 trained sizes"),
        ("prompts", "names.json", "lists no hash"),
        ("prompts", 3, "should be str"),
        ("t5_tokens", -1, "t5_tokens = -1"),
        ("components.transformer.graph", "other.onnx", "lists no hash"),
        ("tokenizers.tokenizer.length", 0, r"tokenizer\.length = 0"),
        ("tokenizers.tokenizer.length", 10_001, r"tokenizer\.length = 10001, which must be from 2 to 10000"),
        ("tokenizers.tokenizer.pad_id", -1, r"tokenizer\.pad_id = -1"),
        ("tokenizers.tokenizer.pad_id", 2**63, r"tokenizer\.pad_id = 9223372036854775808"),
        ("t5_tokens", 10**12, "t5_tokens = 1000000000000"),
        ("sampler.steps", 1001, r"sampler\.steps = 1001"),
        ("sampler.train_timesteps", 10**9, r"sampler\.train_timesteps"),
        ("sampler.guidance", -1.0, r"sampler\.guidance = -1"),
        ("latents.channels", 10**9, r"latents\.channels"),
        ("latents.factor", 10**9, r"latents\.factor"),
        ("latents.patch", 10**9, r"latents\.patch"),
        ("latents.scaling", 1e-300, r"latents\.scaling"),
        ("latents.shift", 1e300, r"latents\.shift"),
        ("sizes.maximum", 16_400, r"sizes\.maximum = 16400"),
        ("components.transformer.parameters", 10**400, r"transformer\.parameters = 1000"),
        ("preview", {"factors": [[0.1, 0.2, 0.3]] * 3, "bias": [0.0] * 3}, r"length of preview\.factors = 3"),
        ("preview", {"factors": [[0.1, 0.2]] * 4, "bias": [0.0] * 3}, "preview"),
        ("preview", {"factors": [[0.1, 0.2, 0.3]] * 4, "bias": [0.0, 1e9, 0.0]}, "row 0, colour 1 = 1000000000"),
        ("preview", {"factors": [[0.1, 0.2, 0.3]] * 3 + [[0.0, 0.0, -1e7]], "bias": [0.0] * 3}, "row 4, colour 2"),
    ],
)
def test_values_that_no_export_writes_are_refused(table, path, value, said):
    put(table, path, value)
    with pytest.raises(BundleError, match=said):
        parse(table)


@pytest.mark.parametrize(
    ("path", "value", "said"),
    [
        ("sampler.step_shift.slopes", [1.0, 0.0], r"slopes\[0\] = 1"),
        ("sampler.step_shift.offsets", [0.0, 11.0], r"offsets\[1\] = 11"),
        ("sampler.step_shift.steps", [10, 10], r"steps\[1\] = 10, which must be from 11"),
        ("sampler.step_shift.most", 0, r"most = 0"),
        ("tokenizers.tokenizer.template.padding", "middle", "padding 'middle' in prompt, end, none"),
        ("tokenizers.tokenizer.template.tokens", -1, r"template\.tokens = -1"),
    ],
)
def test_a_shift_or_a_template_that_no_export_writes_is_refused(table, path, value, said):
    table["sampler"]["step_shift"] = {"steps": [10, 200], "slopes": [1e-4, 2e-4], "offsets": [2.0, 0.5], "most": 4300}
    table["tokenizers"]["tokenizer"]["template"] = {"before": "a", "after": "b", "padding": "end"}
    assert parse(table).sampler.step_shift.most == 4300
    put(table, path, value)
    with pytest.raises(BundleError, match=said):
        parse(table)


@pytest.mark.parametrize(
    "wrong",
    [
        {"terms": [["height"]], "coefficients": [1.0], "error": 1.0},
        {"terms": [["height"]], "coefficients": [-1.0], "error": 0.0},
        {"terms": [["height"]], "coefficients": [], "error": 0.0},
        {"terms": [["colour"]], "coefficients": [1.0], "error": 0.0},
        {"terms": [["height"]] * 300, "coefficients": [1.0] * 300, "error": 0.0},
        {"terms": [["height"] * 40], "coefficients": [1.0], "error": 0.0},
    ],
)
def test_a_cost_that_could_not_be_planned_with_is_refused(table, wrong):
    right = {"terms": [[], ["height", "width"]], "coefficients": [1.0, 2.0], "error": 0.1}
    spec = table["components"]["transformer"]
    spec["cost"] = {"flops": right, "activations": right, "widened": right}
    assert parse(table).components["transformer"].cost.flops.at({"height": 3, "width": 2}) == pytest.approx(13 / 0.9)
    spec["cost"]["activations"] = wrong
    with pytest.raises(BundleError, match=r"cost\.activations = .*not a polynomial"):
        parse(table)


def test_a_graph_of_absurd_width_is_refused(table):
    table["components"]["transformer"]["inputs"][1]["shape"][2] = 2**40
    with pytest.raises(BundleError, match=r"encoder_hidden_states\.shape\[2\] = 1099511627776"):
        parse(table)


def test_a_file_of_absurd_size_is_refused(table):
    next(iter(table["files"].values()))["bytes"] = 10**400
    with pytest.raises(BundleError, match="bytes = 1000"):
        parse(table)


def test_a_parity_figure_without_measure_is_refused(table):
    table["parity"] = [{"component": "x", "shapes": {}, "relative_l2": 10**400, "maximum": None, "gate": None}]
    with pytest.raises(BundleError, match="finite float"):
        parse(table)


@pytest.mark.parametrize(
    "path",
    [
        "../x",
        "/x",
        "a/../../x",
        "a//b",
        "./a",
        "a/",
        "",
        ".",
        "C:/x",
        "C:x",
        "a\\b",
        "a\0b",
        "a\nb",
        "\ud800",
        "x" + "/..",
    ],
)
def test_paths_that_leave_the_directory_or_are_not_plain_are_refused(table, path):
    table["files"][path] = {"sha256": "0", "bytes": 0, "origin": False}
    with pytest.raises(BundleError, match="not plain"):
        parse(table)


@pytest.mark.parametrize("text", ["", "[]", "null", "{", '{"schema": NaN}', '{"schema": "1"}', "[" * 10**5, "1" * 5000])
def test_text_that_is_no_manifest_is_refused(text):
    with pytest.raises(BundleError):
        bundle_json.parse(text.encode(), "bundle.json")


def test_json_that_python_reads_as_infinity_is_refused(content):
    text = bundle_json.dump(content).replace(b'"shift": 3.0', b'"shift": 1e999')
    with pytest.raises(BundleError, match="finite float"):
        bundle_json.parse(text, "bundle.json")


JSON = st.recursive(st.none() | st.booleans() | st.integers() | st.floats() | st.text(), st.lists, max_leaves=4)


@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.data())
def test_any_replaced_value_gives_a_manifest_or_a_bundle_error(content, data):
    table = json.loads(bundle_json.dump(content))
    place = table
    while isinstance(place, dict) and place:
        key = data.draw(st.sampled_from(sorted(place)))
        if not isinstance(place[key], dict) or data.draw(st.integers(0, 3)) == 0:
            place[key] = data.draw(JSON)
            break
        place = place[key]
    try:
        parsed = parse(table)
    except BundleError:
        return
    assert bundle_json.parse(bundle_json.dump(parsed), "bundle.json") == parsed


@settings(max_examples=100, deadline=None)
@given(st.binary(max_size=60))
def test_any_bytes_give_a_bundle_error(data):
    with pytest.raises(BundleError):
        bundle_json.parse(data, "bundle.json")


def test_a_bundle_from_before_trained_sizes_and_names_opens_and_offers_its_default_size(table):
    del table["sizes"]["trained"], table["prompts"]
    old = parse(table)
    assert (old.sizes.trained, old.sizes.good, old.prompts) == ((), ((32, 32),), "")


def test_a_video_of_two_stages_keeps_the_keys_of_earlier_bundles():
    """Bundles of every age have the fields of Stage II beside the others, and none has a table for them."""
    path = shipped()["emoji-motion"] / "bundle.json"
    earlier = json.loads(path.read_text())
    content = bundle_json.parse(path.read_bytes(), "bundle.json")
    assert content.video.detail.targets == earlier["video"]["targets"]
    assert content.video.motion.boundary == 0.9
    again = json.loads(bundle_json.dump(content))
    assert again["video"].keys() - earlier["video"].keys() == {"given"}
    assert {name: again["video"][name] for name in earlier["video"]} | {"motion": earlier["video"]["motion"]} == (
        earlier["video"]
    )
    assert again["video"]["motion"].keys() - earlier["video"]["motion"].keys() == {"boundary"}
    assert bundle_json.parse(bundle_json.dump(content), "bundle.json") == content
