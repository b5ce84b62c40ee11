import json
from dataclasses import replace
from pathlib import Path

import pytest

from segue.export.checkpoint.read import Settings
from segue.export.planned import planned
from segue.runtime.bundle import bundle_json
from segue.runtime.bundle.reader import read_manifest


@pytest.mark.slow
def test_a_plan_by_configs_alone_counts_what_the_export_counts(tiny_checkpoint: Path, half: Path) -> None:
    exported = read_manifest(half)
    folders = {spec.graph.partition("/")[0] for spec in exported.components.values() if spec.weights}
    read = {name: json.loads((tiny_checkpoint / name).read_text()) for name in ("model_index.json", "segue.json")}
    scheduler = json.loads((tiny_checkpoint / "scheduler/scheduler_config.json").read_text())
    configs = {name: json.loads((tiny_checkpoint / name / "config.json").read_text()) for name in folders}
    said = {key: value for key, value in read["segue.json"].items() if key in ("t5_tokens", "maximum_size")}
    made = planned("tiny", read["model_index.json"], configs, scheduler, Settings(**said), "fp16", 2**17)
    assert bundle_json.parse(bundle_json.dump(made), "it") == made
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


def test_the_plan_in_eight_bits_is_the_one_in_sixteen_with_half_the_bytes_of_its_transformers() -> None:
    whole, made = read_manifest("swifti2v-wan22"), read_manifest("swifti2v-wan22-w8a8")
    for component, spec in whole.components.items():
        halved = "transformer" in component and spec.weights
        sizes = [sum(of.files[file].bytes for file in spec.weights) for of in (made, whole)]
        assert sizes[0] == (sizes[1] // 2 if halved else sizes[1])
        parts = tuple(replace(part, bytes=part.bytes // 2 if halved else part.bytes) for part in spec.parts)
        assert made.components[component] == replace(spec, precision="w8a8" if halved else spec.precision, parts=parts)
    assert made == replace(whole, name=made.name, components=made.components, files=made.files)


def test_a_second_expert_of_the_same_configuration_has_files_of_its_own() -> None:
    content = read_manifest("swifti2v-wan22")
    first, second = (content.components[name] for name in ("transformer", "transformer_2"))
    assert (second.parameters, second.cost, len(second.parts)) == (first.parameters, first.cost, len(first.parts))
    for paths in ((one.graph, *one.graphs, *one.weights) for one in (first, second)):
        folder = paths[0].partition("/")[0]
        assert all(path.startswith(f"{folder}/") and content.files[path].bytes > 0 for path in paths)
    assert not set(first.graphs) & set(second.graphs)
    assert second.weights == ("transformer_2/transformer_2.safetensors",)
