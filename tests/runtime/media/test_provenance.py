"""What files say of themselves: metadata that can be left out, and signatures that break when a file is changed."""

import io
import json
import sys

import numpy as np
import pytest
from click.testing import CliRunner
from PIL import Image

import segue
from segue.cli import cli
from segue.errors import UsageError
from segue.runtime.media.provenance import Certificate, read_file, write_picture
from segue.runtime.media.sinks import mp4

IMAGE = np.arange(48 * 64 * 3, dtype=np.uint8).reshape(48, 64, 3)
TOLD = {"prompt": "a red heart", "seed": 7, "bundle_sha256": "ab" * 32, "engine": "ort-cpu"}


@pytest.fixture
def film(tmp_path):
    def write(told):
        path = tmp_path / "film.mp4"
        with mp4(path, 12.0, 48, 64, told) as frames:
            frames(np.stack([IMAGE] * 5))
        return path

    return write


def test_a_picture_says_what_it_was_told_and_nothing_without(tmp_path):
    write_picture(tmp_path / "a.png", IMAGE, TOLD, None)
    write_picture(tmp_path / "b.png", IMAGE, None, None)
    assert read_file(tmp_path / "a.png") == {"metadata": TOLD, "signature": None}
    assert read_file(tmp_path / "b.png") == {"metadata": None, "signature": None}
    assert b"red heart" not in (tmp_path / "b.png").read_bytes()


def test_a_video_says_what_it_was_told_and_nothing_without(film):
    assert read_file(film(TOLD)) == {"metadata": TOLD, "signature": None}
    assert read_file(film(None)) == {"metadata": None, "signature": None}


def test_a_signed_picture_is_the_same_picture_and_a_change_breaks_the_signature(tmp_path, certificate):
    path = tmp_path / "a.png"
    write_picture(path, IMAGE, TOLD, certificate)
    found = read_file(path)
    assert found["metadata"] == TOLD
    assert found["signature"] == {"signer": "Somebody", "issuer": "Tests", "valid": True, "why": []}
    assert np.array_equal(np.asarray(Image.open(path)), IMAGE)

    other = io.BytesIO()
    Image.fromarray(255 - IMAGE).save(other, "PNG")
    start = path.read_bytes()
    mine, theirs = (data[data.index(b"IDAT") - 4 : data.index(b"IEND") - 4] for data in (start, other.getvalue()))
    path.write_bytes(start.replace(mine, theirs))
    changed = read_file(path)["signature"]
    assert not changed["valid"]
    assert any("Hash" in code for code in changed["why"])


def test_commands_sign_leave_out_and_tell(tmp_path, certificate):
    run = CliRunner().invoke
    path = tmp_path / "heart.png"
    keys = ["--certificate", str(certificate.chain), "--key", str(certificate.key)]
    made = ["render", "emoji", "a red heart", "--size", "64", "--steps", "1", "-o", str(path)]
    assert run(cli, [*made, *keys]).exit_code == 0
    said = run(cli, ["show", str(path)]).output
    assert "a red heart" in said
    assert segue.open("emoji").bundle.digest[:40] in said
    assert "Signed by Somebody (Tests) and not changed since." in said
    assert "Segue did not check whether that signer is trustworthy." in said.replace("\n", " ")
    assert run(cli, [*made, "--no-metadata"]).exit_code == 0
    said = run(cli, ["show", str(path)]).output
    assert "holds no metadata of Segue" in said
    assert "It is not signed." in said


def test_without_c2pa_python_the_metadata_of_a_signed_file_is_told_all_the_same(tmp_path, certificate, monkeypatch):
    path = tmp_path / "heart.png"
    write_picture(path, IMAGE, TOLD, certificate)
    monkeypatch.setitem(sys.modules, "c2pa", None)
    found = read_file(path)
    assert found["metadata"] == TOLD
    assert found["signature"]["valid"] is None
    said = CliRunner().invoke(cli, ["show", str(path)])
    assert said.exit_code == 0
    assert "It may be signed: signatures need c2pa-python" in said.output
    write_picture(path, IMAGE, TOLD | {"prompt": "c2pa"}, None)
    assert read_file(path)["signature"] is None


def test_a_video_is_not_begun_with_a_certificate_that_cannot_sign(tmp_path, certificate, video_bundle):
    (tmp_path / "broken.pem").write_text("nothing")
    broken = Certificate(tmp_path / "broken.pem", certificate.key)
    request = segue.AnimationRequest(IMAGE, frames=5)
    with segue.open(video_bundle) as model:
        with pytest.raises(UsageError, match="cannot sign"):
            segue.film(model, request, tmp_path / "out.mp4", certificate=broken)
        assert not (tmp_path / "out.mp4").exists()
        segue.film(model, request, str(tmp_path / "out.mp4"), certificate=certificate)
        with pytest.raises(UsageError, match="is not a video format"):
            segue.film(model, request, tmp_path / "out.avi")
    found = read_file(tmp_path / "out.mp4")
    assert found["signature"]["valid"]
    assert found["metadata"]["frames"] == 5


@pytest.mark.parametrize("which", ["chain", "key"])
def test_certificates_that_cannot_sign_are_refused_and_the_old_file_stays(tmp_path, certificate, which):
    path = tmp_path / "a.png"
    path.write_bytes(b"before")
    (tmp_path / "broken.pem").write_text("nothing")
    parts = {"chain": certificate.chain, "key": certificate.key} | {which: tmp_path / "broken.pem"}
    with pytest.raises(UsageError, match="cannot sign"):
        write_picture(path, IMAGE, TOLD, Certificate(**parts))
    assert path.read_bytes() == b"before"


def test_files_of_another_kind_are_refused(tmp_path):
    (tmp_path / "a.txt").write_text("text")
    (tmp_path / "a.mp4").write_text("text")
    for name in ("a.txt", "a.mp4", "absent.png"):
        with pytest.raises(UsageError):
            read_file(tmp_path / name)
    with pytest.raises(UsageError, match="must be one of"):
        Certificate(tmp_path / "a.txt", tmp_path / "a.txt", "md5")


def claimed(path):
    """Return the actions and the ingredients that a signed picture states."""
    c2pa = pytest.importorskip("c2pa")
    with c2pa.Reader("image/png", io.BytesIO(path.read_bytes())) as reader:
        found = json.loads(reader.json())
    manifest = found["manifests"][found["active_manifest"]]
    (actions,) = [one["data"]["actions"] for one in manifest["assertions"] if one["label"].startswith("c2pa.actions")]
    parts = [(one["title"], one["relationship"], one.get("description")) for one in manifest.get("ingredients", ())]
    return [(one["action"], one.get("digitalSourceType", "").rpartition("/")[2]) for one in actions], parts


@pytest.mark.parametrize(
    ("told", "actions", "ingredients"),
    [
        ({}, [("c2pa.created", "trainedAlgorithmicMedia")], []),
        (
            {"image_sha256": "ab", "strength": 0.6},
            [("c2pa.opened", ""), ("c2pa.edited", "compositeWithTrainedAlgorithmicMedia")],
            [("image", "parentOf", "sha256 of its pixels: ab")],
        ),
        (
            {"references_sha256": ["cd", "ef"]},
            [("c2pa.created", "compositeWithTrainedAlgorithmicMedia")],
            [
                ("reference 1", "inputTo", "sha256 of its pixels: cd"),
                ("reference 2", "inputTo", "sha256 of its pixels: ef"),
            ],
        ),
        (
            {"image_sha256": "ab", "references_sha256": ["cd"]},
            [("c2pa.opened", ""), ("c2pa.edited", "compositeWithTrainedAlgorithmicMedia")],
            [
                ("image", "parentOf", "sha256 of its pixels: ab"),
                ("reference 1", "inputTo", "sha256 of its pixels: cd"),
            ],
        ),
    ],
)
def test_a_signature_states_the_pictures_that_went_in(tmp_path, certificate, told, actions, ingredients):
    path = tmp_path / "a.png"
    write_picture(path, IMAGE, TOLD | told, certificate)
    assert read_file(path)["signature"]["valid"]
    found, parts = claimed(path)
    assert (found, sorted(parts)) == (actions, ingredients)
    write_picture(path, IMAGE, None, certificate, described=TOLD | told)  # without metadata the hashes are not told
    found, parts = claimed(path)
    assert (found, sorted(parts)) == (actions, [(name, relation, None) for name, relation, _ in ingredients])
    assert b"sha256 of" not in path.read_bytes()


def test_the_command_signs_a_picture_made_from_another_as_a_composite(tmp_path, certificate):
    Image.fromarray(np.full((64, 64, 3), 200, np.uint8)).save(tmp_path / "in.png")
    asked = ["render", "emoji", "pizza", "--size", "64", "--steps", "2", "--image", str(tmp_path / "in.png")]
    keys = ["--certificate", str(certificate.chain), "--key", str(certificate.key)]
    told = CliRunner().invoke(cli, [*asked, *keys, "--no-metadata", "-o", str(tmp_path / "out.png")])
    assert told.exit_code == 0, told.output
    assert claimed(tmp_path / "out.png")[0][-1] == ("c2pa.edited", "compositeWithTrainedAlgorithmicMedia")
