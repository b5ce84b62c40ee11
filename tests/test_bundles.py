"""The bundles that ship with the package."""

from pathlib import Path

import segue

MEGABYTE = 1_000_000
BUNDLES = Path(segue.__file__).parent / "bundles"


def size(folder: Path) -> int:
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())


def test_the_shipped_bundles_stay_small() -> None:
    assert size(BUNDLES / "emoji") <= 70 * MEGABYTE
    assert size(BUNDLES) <= 150 * MEGABYTE


def test_the_shipped_bundle_passed_parity_and_bears_its_name() -> None:
    with segue.open("emoji") as model:
        manifest = model.bundle.manifest
    assert manifest.name == "emoji"
    assert {p.component for p in manifest.parity} == set(manifest.components)
    assert all(p.relative_l2 is not None and p.relative_l2 <= p.gate for p in manifest.parity)
    assert manifest.t5_tokens == 0


def test_the_shipped_bundle_tells_no_path_of_the_machine_that_made_it() -> None:
    texts = [path.read_text() for path in (BUNDLES / "emoji").rglob("*.json")]
    assert texts
    assert not any("_name_or_path" in text or "/root/" in text for text in texts)
