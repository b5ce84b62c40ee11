"""Comparisons: two bundles, a bundle and pictures, the verdict, the report that stands alone."""

import dataclasses
import hashlib
import json

import numpy as np
import pytest
import torch
from click.testing import CliRunner
from PIL import Image

import segue
from segue.cli import cli
from segue.errors import UsageError
from segue.training.evaluation import compare as module
from segue.training.evaluation import compare_report, measures
from segue.training.evaluation.compare import (
    CompareSpec,
    Comparison,
    Side,
    _apart,
    _sets_apart,
    compare,
    rows_of,
    verdict,
)
from segue.training.metrics.scores import kid

PROMPTS = ("a red heart", "pizza", "rocket")


@pytest.fixture(autouse=True)
def stand_ins(monkeypatch, features, distance):
    monkeypatch.setattr(module, "Lite0", features)
    monkeypatch.setattr(measures, "Lpips", distance)


def told(*_):
    return None


def side(name, slow):
    return Side(name, np.zeros((1, 1, 8, 8, 3), np.uint8), np.array([slow]), {"p95 s": slow})


def test_a_bundle_beside_itself_has_no_gap_and_both_have_times(exported):
    found = compare(str(exported), str(exported), CompareSpec(PROMPTS, 60.0, 2, (64, 64), 1, 3.6), None, told)
    first, second = found.sides
    assert first.images.shape == (3, 2, 64, 64, 3)
    assert np.array_equal(first.images, second.images)
    assert found.gap["LPIPS"] == 0
    assert first.seconds.shape == (6,)
    assert first.figures["cost of 1000"] == pytest.approx(float(first.seconds.mean()))
    assert found.verdict.count("keeps 60000 ms") == 2


@pytest.mark.filterwarnings("ignore::segue.runtime.notices.Notice")
def test_both_bundles_begin_with_the_given_picture_and_the_report_tells_its_hash(tmp_path):
    rows, columns = np.mgrid[0:128, 0:128]
    image = np.stack([rows, columns, rows + columns], -1).astype(np.uint8)
    spec = CompareSpec(PROMPTS[:2], 60.0, 1, None, 1, steps=4, inputs={"image": image, "strength": 0.5})
    found = compare("emoji", "emoji", spec, None, told)
    with segue.open("emoji", threads=1) as model:
        expected = model.generate(PROMPTS[0], seed=0, steps=4, image=image, strength=0.5)
    assert np.array_equal(found.sides[0].images[0, 0], expected)
    compare_report.write_compare_report(found, spec, tmp_path)
    table = json.loads((tmp_path / "report.json").read_text())
    assert table["spec"]["inputs"] == {"image": hashlib.sha256(image.tobytes()).hexdigest(), "strength": 0.5}
    assert "all from the same input pictures" in (tmp_path / "report.html").read_text()


def test_a_bundle_beside_pictures_that_exist_has_the_times_of_one_side(exported, tmp_path):
    for number in range(3):
        Image.fromarray(np.full((100, 80, 3), 80 * number, np.uint8)).save(tmp_path / f"{number}.png")
    found = compare(str(exported), str(tmp_path), CompareSpec(PROMPTS, 1e-6, 1, (64, 64), 1), None, told)
    assert found.sides[1].seconds is None
    assert found.sides[1].images.shape == (3, 1, 64, 64, 3)
    assert "finished pictures, without a time" in found.verdict
    assert "misses 0 ms" in found.verdict
    assert ("median s", f"{found.sides[0].figures['median s']:.3g}", "") in rows_of(found)


def test_a_directory_with_another_number_of_pictures_is_refused(exported, tmp_path):
    Image.fromarray(np.zeros((8, 8, 3), np.uint8)).save(tmp_path / "one.png")
    with pytest.raises(UsageError, match="has 1 pictures for 3 prompts"):
        compare(str(exported), str(tmp_path), CompareSpec(PROMPTS, 1.0), None, told)


def test_the_verdict_is_of_95_pictures_in_100():
    said = verdict(side("fast", 0.2), side("slow", 0.9), {"LPIPS": 0.1, "KID x 1e3": 5.0}, 0.5)
    assert said.startswith("fast keeps 500 ms (95 % within 200 ms); slow misses 500 ms (95 % within 900 ms).")


def test_pictures_of_all_common_seeds_count_and_one_a_prompt_is_set_beside_each():
    images = torch.rand(2, 3, 3, 64, 64, generator=torch.Generator().manual_seed(0)) * 2 - 1
    assert _apart(images, images) == pytest.approx(0, abs=1e-6)
    other = images.clone()
    other[:, 2] *= -1
    third = _apart(images[:, 2:], other[:, 2:])
    assert _apart(images, other) == pytest.approx(third / 3, rel=1e-4)
    expected = np.mean([_apart(images[:, i : i + 1], images[:, :1]) for i in range(3)])
    assert _apart(images, images[:, :1]) == pytest.approx(expected, rel=1e-4)


def test_kid_to_one_picture_a_prompt_takes_the_pictures_of_the_same_prompts_at_every_seed():
    generator = torch.Generator().manual_seed(0)
    prompts = torch.randn(40, 1, 32, generator=generator)
    prompts[:20] += 3  # the first half of the prompts gives other pictures than the second
    drawn = prompts + 0.01 * torch.randn(40, 2, 32, generator=generator)
    expected = [kid(prompts[:, 0], drawn[:, seed])[0] for seed in range(2)]
    assert _sets_apart(drawn, prompts) == pytest.approx(np.mean(expected))
    assert _sets_apart(prompts, drawn) == pytest.approx(np.mean(expected), abs=1e-6)
    assert abs(_sets_apart(drawn, prompts)) < 0.01 * abs(kid(prompts[:20, 0].repeat(2, 1), prompts[:, 0])[0])


def test_a_bundle_at_two_seeds_is_set_beside_each_picture_of_a_directory(exported, tmp_path):
    first = compare(str(exported), str(exported), CompareSpec(PROMPTS, 60.0, 1, (64, 64), 1), None, told).sides[0]
    for number, image in enumerate(first.images[:, 0]):
        Image.fromarray(image).save(tmp_path / f"{number}.png")
    found = compare(str(exported), str(tmp_path), CompareSpec(PROMPTS, 60.0, 2, (64, 64), 1), None, told)
    there, *drawn = (
        module.Lite0().features(torch.from_numpy(images).movedim(-1, 1).float() / 127.5 - 1)
        for images in (found.sides[1].images[:, 0], *np.moveaxis(found.sides[0].images, 1, 0))
    )
    assert kid(there, drawn[0])[0] == pytest.approx(0, abs=1e-6)
    assert kid(there, drawn[1])[0] != pytest.approx(0, abs=1e-3)
    assert found.gap["KID x 1e3"] == pytest.approx(kid(there, drawn[1])[0] / 2)


def test_the_report_says_which_side_drew_and_which_holds_finished_pictures():
    page = [
        compare_report._drawn(Comparison((side("a", 0.2), second), {}, ""), CompareSpec(PROMPTS, 1.0, 2))
        for second in (side("b", 0.2), dataclasses.replace(side("b", 0.2), seconds=None))
    ]
    assert page == [
        "3 prompts, 2 pictures each, both sides in turn on this machine (ort-cpu).",
        "3 prompts, 2 pictures each by a on this machine (ort-cpu); b holds one for each prompt.",
    ]


def test_the_report_stands_alone(exported, tmp_path):
    prompts = tmp_path / "prompts.txt"
    prompts.write_text("\n".join(PROMPTS) + "\n\n")
    command = ["compare", str(exported), str(exported), "--prompts", str(prompts), "--latency-budget", "60s"]
    run = CliRunner().invoke(cli, [*command, "-o", str(tmp_path / "report"), "--size", "64", "--seeds", "1"])
    assert run.exit_code == 0, run.output
    page = (tmp_path / "report/report.html").read_text()
    assert page.count("data:image/png;base64") == 6
    assert "src='http" not in page
    assert "<svg" in page
    table = json.loads((tmp_path / "report/report.json").read_text())
    assert table["verdict"] in run.output
    assert len(table["sides"][0]["seconds"]) == 3


@pytest.mark.parametrize("budget", ["500", "0ms", "fast"])
def test_a_budget_that_is_no_time_is_wrong_usage(tmp_path, budget):
    run = CliRunner().invoke(cli, ["compare", "a", "b", "--prompts", "p", "--latency-budget", budget, "-o", "r"])
    assert run.exit_code != 0
    assert "is not a time" in run.output
