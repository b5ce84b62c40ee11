import json

import numpy as np
import pytest

from segue.errors import UsageError
from segue.runtime.bundle import reader
from segue.runtime.components import Components
from segue.runtime.diagnostics import compare, difference
from segue.runtime.diagnostics.difference import Difference
from segue.runtime.input_picture import as_input
from segue.runtime.media.read_image import test_pattern as pattern_of
from segue.runtime.pipeline import Model
from segue.runtime.request import Request
from segue.runtime.videos.request import AnimationRequest

REQUEST = Request("red heart", steps=3)
SAME = Difference(0.0, 0.0)
FINE = compare.Comparison("ort-cuda", {"transformer": Difference(1e-3, 1e-2)}, {"picture": (1e-3, 2e-3)}, 50.0)


def test_a_target_is_as_near_as_itself(tiny_bundle):
    opened = reader.read(tiny_bundle)
    (found,) = compare.compare(opened, ["ort-cpu"], REQUEST)
    assert {"text_encoder", "text_encoder_2", "transformer", "vae_decoder"} <= set(found.components)
    assert set(found.components) == set(opened.manifest.components)
    assert set(found.components.values()) == {SAME}
    assert found.steps == {"picture": (0.0, 0.0, 0.0)}
    assert (found.growth, found.psnr) == ({"picture": 1.0}, None)


def test_the_euler_step_of_a_gpu_is_compared_by_itself(exported):
    (found,) = compare.compare(reader.read(exported), ["ort-cpu"], Request("red heart", steps=2, size=64))
    assert found.components["transformer_step"] == SAME


@pytest.mark.parametrize("strength", [None, 0.5])
def test_a_picture_to_begin_with_goes_through_the_encoder_of_both_targets(strength, monkeypatch):
    opened = reader.read("emoji")
    image = pattern_of(*opened.manifest.sizes.default)
    inputs = {} if strength is None else {"image": image, "strength": strength}
    plain, seen = Components.run, []

    def run(self, component, cancel, *given, **feeds):
        if component == "vae_encoder":
            seen.append(feeds["pixels"])
        return plain(self, component, cancel, *given, **feeds)

    monkeypatch.setattr(Components, "run", run)
    (found,) = compare.compare(opened, ["ort-cpu"], compare.usual_request(opened.manifest, inputs))
    assert found.components["vae_encoder"] == SAME
    assert len(found.steps["picture"]) == (4 if strength is None else 2)
    assert len(seen) == 3  # of the reference, and of the target alone and in its picture
    assert all(np.array_equal(pixels, as_input(image)) for pixels in seen)


def test_a_video_takes_no_inputs_of_pictures():
    with pytest.raises(UsageError, match="emoji-motion makes videos"):
        compare.usual_request(reader.read_manifest("emoji-motion"), {"strength": 0.5})


def test_what_one_component_does_otherwise_shows_in_steps_and_picture(tiny_bundle, monkeypatch):
    opened = reader.read(tiny_bundle)
    plain, models = Components.run, []

    def run(self, component, cancel, **feeds):
        made = plain(self, component, cancel, **feeds)
        if self not in models:
            models.append(self)
        if component == "transformer" and models.index(self) == 1:
            made = {name: array * np.float32(1.01) for name, array in made.items()}
        return made

    monkeypatch.setattr(Components, "run", run)
    (found,) = compare.compare(opened, ["ort-cpu"], REQUEST)
    assert found.components["transformer"].relative_l2 == pytest.approx(0.01, rel=1e-3)
    assert 0 < found.components["transformer"].maximum < 1
    assert found.components["text_encoder"] == SAME
    steps = found.steps["picture"]
    assert all(0 < step < 0.1 for step in steps)
    assert found.growth == {"picture": steps[2] / steps[0]}
    assert found.psnr is None or found.psnr > 20


def test_what_is_beyond_the_gates_is_named(tiny_bundle):
    opened = reader.read(tiny_bundle)
    assert FINE.faults(opened) == []
    wrong = compare.Comparison("ort-cuda", {"transformer": Difference(0.5, 1.0)}, {"picture": (0.5,)}, 12.0)
    assert [fault.split()[0] for fault in wrong.faults(opened)] == ["transformer", "the"]


def test_a_nan_is_beyond_every_gate(tiny_bundle, monkeypatch):
    opened = reader.read(tiny_bundle)
    plain = Model.call

    def call(self, component, feeds):
        return {name: array * np.float32("nan") for name, array in plain(self, component, feeds).items()}

    monkeypatch.setattr(Model, "call", call)
    (found,) = compare.compare(opened, ["ort-cpu"], REQUEST)
    assert len(found.faults(opened)) == 4
    assert json.loads(json.dumps(compare.as_json(found), allow_nan=False))


def test_bfloat16_has_no_reference(edit):
    path = edit(lambda table: table["components"]["transformer"].update(precision="bf16"))
    with pytest.raises(UsageError, match="in bf16"):
        compare.compare(reader.read(path), ["ort-cuda"], REQUEST)


def test_the_report_is_kept_under_the_bundles_hash(tiny_bundle):
    opened = reader.read(tiny_bundle)
    path = compare.store(opened, [FINE])
    assert path.stem == opened.digest
    (stored,) = json.loads(path.read_text())["found"]
    assert stored["components"] == {"transformer": {"relative_l2": 1e-3, "maximum": 1e-2}}
    assert (stored["steps"], stored["growth"]) == ({"picture": [1e-3, 2e-3]}, {"picture": 2.0})


def test_a_video_is_compared_call_by_call_of_both_stages(video_bundle, monkeypatch):
    opened = reader.read(video_bundle)
    image = np.full((128, 64, 3), 90, np.uint8)
    plain, models = Components.run, []

    def run(self, component, cancel, keep=(), **feeds):
        made = plain(self, component, cancel, keep, **feeds)
        if self not in models:
            models.append(self)
        if component in ("vae_encoder_first", "vae_decoder_first") and models.index(self) == 1:
            made = {name: array * np.float32(1.01) for name, array in made.items()}
        return made

    monkeypatch.setattr(Components, "run", run)
    (found,) = compare.compare(opened, ["ort-cpu"], AnimationRequest(image, "dog", frames=17))
    assert set(found.components) == {
        name for name, spec in opened.manifest.components.items() if name in found.components
    }
    assert {"transformer", "transformer_step", "detail_transformer", "detail_transformer_step"} <= set(found.components)
    assert found.components["vae_decoder_first"].relative_l2 == pytest.approx(0.01, rel=1e-3)
    assert found.components["detail_transformer"] == found.components["transformer"] == SAME
    lengths = {stage: len(steps) for stage, steps in found.steps.items()}
    assert lengths == {"motion": 3, "detail": 4}  # two steps for each of two segments
    assert all(0 < step < 0.1 for steps in found.steps.values() for step in steps)


def test_psnr_of_equal_pictures_is_infinite_and_of_one_level_is_48_db():
    black, grey = np.zeros((4, 4, 3), np.uint8), np.ones((4, 4, 3), np.uint8)
    assert difference.psnr(black, black) == float("inf")
    assert difference.psnr(grey, black) == pytest.approx(48.13, abs=0.01)
