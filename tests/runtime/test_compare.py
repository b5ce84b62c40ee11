import json

import numpy as np
import pytest

from segue.errors import UsageError
from segue.runtime import bundle, compare, differences
from segue.runtime.animation import AnimationRequest
from segue.runtime.components import Components
from segue.runtime.request import Request

REQUEST = Request("red heart", steps=3)


def test_a_target_is_as_near_as_itself(tiny_bundle):
    opened = bundle.read(tiny_bundle)
    (found,) = compare.compare(opened, ["ort-cpu"], REQUEST)
    assert set(found.components) == {"text_encoder", "text_encoder_2", "transformer", "vae_decoder"}
    assert set(found.components.values()) == {0.0}
    assert found.steps == (0.0, 0.0, 0.0)
    assert (found.growth, found.psnr) == (1.0, None)


def test_the_euler_step_of_a_gpu_is_compared_by_itself(exported):
    (found,) = compare.compare(bundle.read(exported), ["ort-cpu"], Request("red heart", steps=2, size=64))
    assert found.components["transformer_step"] == 0.0


def test_what_one_component_does_otherwise_shows_in_steps_and_picture(tiny_bundle, monkeypatch):
    opened = bundle.read(tiny_bundle)
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
    assert found.components["transformer"] == pytest.approx(0.01, rel=1e-3)
    assert found.components["text_encoder"] == 0
    assert all(0 < step < 0.1 for step in found.steps)
    assert found.psnr is None or found.psnr > 20


def test_what_is_beyond_the_gates_is_named(tiny_bundle):
    opened = bundle.read(tiny_bundle)
    fine = compare.Comparison("ort-cuda", {"transformer": 1e-3}, (1e-3, 2e-3), 2.0, 50.0)
    assert fine.faults(opened) == []
    wrong = compare.Comparison("ort-cuda", {"transformer": 0.5}, (0.5,), 1.0, 12.0)
    assert [fault.split()[0] for fault in wrong.faults(opened)] == ["transformer", "the"]


def test_a_nan_is_beyond_every_gate(tiny_bundle, monkeypatch):
    opened = bundle.read(tiny_bundle)
    monkeypatch.setattr(compare, "relative_l2", lambda found, expected: float("nan"))
    (found,) = compare.compare(opened, ["ort-cpu"], REQUEST)
    assert len(found.faults(opened)) == 4
    assert json.loads(json.dumps(found.components, allow_nan=False))


def test_bfloat16_has_no_reference(edit):
    path = edit(lambda table: table["components"]["transformer"].update(precision="bf16"))
    with pytest.raises(UsageError, match="in bf16"):
        compare.compare(bundle.read(path), ["ort-cuda"], REQUEST)


def test_the_report_is_kept_under_the_bundles_hash(tiny_bundle):
    opened = bundle.read(tiny_bundle)
    path = compare.store(opened, [compare.Comparison("ort-cuda", {"transformer": 1e-3}, (1e-3, 2e-3), 2.0, 50.0)])
    assert path.stem == opened.digest
    assert json.loads(path.read_text())["found"][0]["steps"] == [1e-3, 2e-3]


def test_a_video_is_compared_call_by_call_of_stage_two(video_bundle, monkeypatch):
    opened = bundle.read(video_bundle)
    image = np.full((128, 64, 3), 90, np.uint8)
    plain, models = Components.run, []

    def run(self, component, cancel, keep=(), **feeds):
        made = plain(self, component, cancel, keep, **feeds)
        if self not in models:
            models.append(self)
        if component == "vae_decoder_first" and models.index(self) == 1:
            made = {name: array * np.float32(1.01) for name, array in made.items()}
        return made

    monkeypatch.setattr(Components, "run", run)
    (found,) = compare.compare(opened, ["ort-cpu"], AnimationRequest(image, "dog", frames=17))
    assert set(found.components) == {
        name for name, spec in opened.manifest.components.items() if name in found.components
    }
    assert {"transformer", "transformer_step", "detail_transformer", "detail_transformer_step"} <= set(found.components)
    assert found.components["vae_decoder_first"] == pytest.approx(0.01, rel=1e-3)
    assert found.components["detail_transformer"] == 0
    assert len(found.steps) == 4  # two steps for each of two segments
    assert all(0 < step < 0.1 for step in found.steps)


def test_psnr_of_equal_pictures_is_infinite_and_of_one_level_is_48_db():
    black, grey = np.zeros((4, 4, 3), np.uint8), np.ones((4, 4, 3), np.uint8)
    assert differences.psnr(black, black) == float("inf")
    assert differences.psnr(grey, black) == pytest.approx(48.13, abs=0.01)
