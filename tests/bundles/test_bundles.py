"""The bundles that ship with the package."""

from functools import partial
from pathlib import Path

import numpy as np
import pytest

import segue
from segue.commands.render import DEMO
from segue.engines.ort.engine import OrtEngine
from segue.engines.streamed import StreamedEngine, StreamedPart
from segue.runtime.bundle.prompts import spell_emoji
from segue.runtime.bundle.reader import read_manifest
from segue.runtime.bundle.shapes import default_range, dimensions, sized

MEGABYTE = 1_000_000
BUNDLES = Path(segue.__file__).parent / "bundles"


def size(folder: Path) -> int:
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())


def test_the_shipped_bundles_stay_small() -> None:
    assert sum(size(BUNDLES / name) for name in ("emoji", "emoji-teacher")) <= 150 * MEGABYTE
    assert size(BUNDLES) <= 210 * MEGABYTE  # of which emoji-motion 66


@pytest.mark.parametrize("name", ["emoji", "emoji-teacher", "emoji-motion"])
def test_a_shipped_bundle_passed_parity_and_bears_its_name(name: str) -> None:
    assert size(BUNDLES / name) <= 71 * MEGABYTE
    with segue.open(name) as model:
        manifest = model.bundle.manifest
    assert manifest.name == name
    assert {p.component for p in manifest.parity} == set(manifest.components)
    assert all(p.relative_l2 is not None and p.relative_l2 <= p.gate for p in manifest.parity)
    assert manifest.t5_tokens == 0


def test_the_student_draws_in_four_calls_and_its_teacher_in_28_with_guidance() -> None:
    with segue.open("emoji") as student, segue.open("emoji-teacher") as teacher:
        few, many = student.bundle.manifest.sampler, teacher.bundle.manifest.sampler
        seen: list[int] = []
        image = student.render(segue.Request("a red heart"), on_step=lambda done, total, _: seen.append(total)).images[
            0
        ]
    assert (few.steps, few.guidance, len(few.sigmas)) == (4, 1.0, 4)
    assert (many.steps, many.guidance) == (28, 3.0)
    assert seen == [4] * 4
    red, green, _ = image[48:80, 48:80].reshape(-1, 3).mean(0)
    assert red > 150
    assert green < 120


def test_the_video_bundle_moves_a_picture_for_a_window_and_hands_over_segments() -> None:
    image = np.full((128, 128, 3), 255, np.uint8)
    image[40:88, 40:88] = (250, 200, 40)
    with segue.open("emoji-motion") as model:
        parts = list(model.animate(image, "waving hand", seed=1))
    assert [len(part) for part in parts] == [13, 12, 8]  # the image, 3 + 3 + 2 latent frames
    frames = np.concatenate(parts).astype(int)
    assert frames.shape == (33, 128, 128, 3)
    assert np.abs(frames[0] - image).mean() < 12  # it begins with the picture
    assert np.abs(np.diff(frames, axis=0)).mean() > 0.05


@pytest.mark.slow
def test_the_video_bundle_takes_a_photograph_at_another_size() -> None:
    from skimage.data import astronaut

    with segue.open("emoji-motion") as model:
        frames = np.concatenate(list(model.animate(astronaut(), "dog", frames=9, size=(128, 192))))
    assert frames.shape == (9, 128, 192, 3)


@pytest.mark.parametrize("name", ["emoji", "emoji-teacher", "emoji-motion"])
def test_the_parts_of_a_shipped_graph_make_what_the_whole_graph_makes_bit_for_bit(name: str) -> None:
    random = np.random.default_rng(0)
    content = read_manifest(name)
    tried = [component for component, spec in content.components.items() if spec.parts]
    assert {"transformer"} <= set(tried)
    for component in tried:
        spec = content.components[component]
        dims = {base: three[0] for base, three in dimensions(content, component, default_range(content)).items()}
        feeds = {
            port.name: random.standard_normal([sized(side, dims, component) for side in port.shape]).astype(port.dtype)
            for port in spec.inputs
        }
        parts = [StreamedPart(partial(OrtEngine, BUNDLES / name / part.graph, 1), part.inputs) for part in spec.parts]
        with OrtEngine(BUNDLES / name / spec.graph, 1) as whole:
            made = whole.run(feeds)
        with StreamedEngine(parts, spec.inputs, spec.outputs, component, ahead=False) as streamed:
            again = streamed.run(feeds)
        assert all(np.array_equal(made[port], again[port]) for port in made), component


@pytest.mark.parametrize("name", ["emoji", "emoji-teacher", "emoji-motion"])
def test_a_shipped_bundle_says_how_near_its_precision_is_to_fp32(name: str) -> None:
    found = read_manifest(name).fidelity
    assert found is not None
    assert found.psnr >= found.gate >= 35


@pytest.mark.slow
def test_a_video_within_the_smallest_budget_is_the_same() -> None:
    image = (np.indices((64, 64, 3)).sum(0) * 5 % 256).astype(np.uint8)
    request = segue.AnimationRequest(image, "waving hand", frames=17, size=64)
    with segue.open("emoji-motion") as model:
        free = np.concatenate(list(model.frames(request)))
    with pytest.raises(segue.BudgetError) as refused, segue.open("emoji-motion", budget="1MiB") as model:
        list(model.frames(request))
    least = -(-refused.value.needed // 2**20)
    with segue.open("emoji-motion", budget=f"{least}MiB") as model:
        assert model.plan(request).streamed
        assert np.array_equal(np.concatenate(list(model.frames(request))), free)


def test_the_shipped_bundles_tell_no_path_of_the_machine_that_made_them() -> None:
    texts = [path.read_text() for path in BUNDLES.rglob("*.json")]
    assert texts
    assert not any("_name_or_path" in text or "/root/" in text for text in texts)


@pytest.mark.parametrize("name", ["emoji", "emoji-teacher", "emoji-motion"])
def test_a_shipped_bundle_knows_its_names_and_its_trained_size(name: str) -> None:
    with segue.open(name) as model:
        content, names = model.bundle.manifest, model.prompts
    assert content.sizes.trained == ((128, 128),)
    assert names is not None
    assert not names.photographs
    assert 1000 < len(names.seen) < len(names.names)
    assert {"red heart", "grinning cat", "waving hand", "woman astronaut medium skin tone"} <= set(names.seen)
    assert "abacus" not in names.seen  # a held-out name
    assert all(names.knows(each.name) for each in names.names)
    assert all(names.knows(f"a {each.name}, {style}") for each in names.names for style in names.styles)
    spelled = {each.emoji: spell_emoji(each.emoji, names) for each in names.names}
    assert spelled == {each.emoji: each.name for each in names.names}


@pytest.mark.parametrize("prompt", ["car", "coffee cup, noto", "红心", "rotes Herz", "ein lächelndes Gesicht"])
def test_what_the_shipped_student_cannot_know_is_told_with_names_that_it_knows(prompt: str) -> None:
    with segue.open("emoji") as model:
        (found,) = model.notices(segue.Request(prompt))
        assert model.notices(segue.Request([text for text, _ in DEMO])) == ()
    assert prompt in found
    assert found.count(",") >= 4


def test_the_video_bundle_is_told_of_photographs_and_not_of_emoji() -> None:
    from skimage.data import astronaut

    with segue.open("emoji") as model:
        drawn = model.generate("grinning cat")
    with segue.open("emoji-motion") as model:
        (found,) = model.notices(segue.AnimationRequest(astronaut(), "grinning cat"))
        assert model.notices(segue.AnimationRequest(drawn, "🐱")) == ()
    assert found.startswith("the picture looks like a photograph, but emoji-motion was trained without photographs")
