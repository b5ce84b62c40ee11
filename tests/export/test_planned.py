import json
from pathlib import Path

from segue.export.checkpoint import Settings
from segue.export.planned import planned
from segue.runtime import manifest
from segue.runtime.bundle import read_manifest


def test_a_plan_by_configs_alone_counts_what_the_export_counts(tiny_checkpoint: Path, half: Path) -> None:
    exported = read_manifest(half)
    folders = {spec.graph.partition("/")[0] for spec in exported.components.values() if spec.weights}
    read = {name: json.loads((tiny_checkpoint / name).read_text()) for name in ("model_index.json", "segue.json")}
    scheduler = json.loads((tiny_checkpoint / "scheduler/scheduler_config.json").read_text())
    configs = {name: json.loads((tiny_checkpoint / name / "config.json").read_text()) for name in folders}
    said = {key: value for key, value in read["segue.json"].items() if key in ("t5_tokens", "maximum_size")}
    made = planned("tiny", read["model_index.json"], configs, scheduler, Settings(**said), "fp16", 2**17)
    assert manifest.parse(manifest.dump(made), "it") == made
    assert (made.sizes, made.latents, made.sampler.shift) == (
        exported.sizes, exported.latents, exported.sampler.shift,
    )  # fmt: skip
    for name, spec in exported.components.items():
        found = made.components[name]
        assert found.inputs == spec.inputs
        assert found.parameters == spec.parameters
        assert len(found.parts) == len(spec.parts)
        assert [part.bytes for part in found.parts] == [part.bytes for part in spec.parts]
        assert found.cost == spec.cost
        if "vae" not in name:  # the export's two graphs of it share a file
            weights, stored = (
                sum(of.files[file].bytes for file in taken.weights) for of, taken in ((made, found), (exported, spec))
            )
            assert 0 <= stored - weights <= 16384, "more than the headers of the files"
