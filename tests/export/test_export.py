"""What an export of a whole (tiny) checkpoint gives."""

import json
import os
import shutil
import sys

import numpy as np
import onnx
import onnxruntime
import pytest
import torch

from segue.errors import BundleError, CheckpointError, OutputError, ParityError, UsageError
from segue.export import export as export_module
from segue.export.checks import parity
from segue.export.export import export
from segue.export.unpack import unpack
from segue.runtime.bundle import bundle_json, manifest, reader
from segue.runtime.bundle import prompts as p


def read(bundle):
    return bundle_json.parse((bundle / "bundle.json").read_bytes(), "bundle.json")


def external(path):
    """Return name -> (location, offset, length) of the initialisers of the graph at `path` that lie outside it."""
    model = onnx.load(path, load_external_data=False)
    return {
        t.name: ({e.key: e.value for e in t.external_data}, t)
        for t in model.graph.initializer
        if t.data_location == onnx.TensorProto.EXTERNAL
    }


def test_every_component_agrees_with_pytorch_at_shapes_that_were_not_traced(exported):
    results = read(exported).parity
    components = ["text_encoder", "text_encoder_2", "transformer", "transformer_step", "vae_decoder", "vae_encoder"]
    assert sorted(r.component for r in results) == sorted(components * 2)
    assert all(r.relative_l2 < 1e-5 and r.gate == 1e-4 and r.note == "" for r in results)
    assert len({str(r.shapes) for r in results}) == 10  # both text encoders and both trials of each


def test_weights_stay_in_the_checkpoints_own_file(exported, tiny_checkpoint):
    from safetensors.numpy import load_file

    graph = exported / "transformer/model.onnx"
    stored = load_file(tiny_checkpoint / "transformer/diffusion_pytorch_model.safetensors")
    data = (exported / "transformer/diffusion_pytorch_model.safetensors").read_bytes()
    pointers = external(graph)
    assert {name.removeprefix("model.") for name in pointers} == set(stored)
    for name, (pointer, tensor) in pointers.items():
        assert pointer["location"] == "diffusion_pytorch_model.safetensors"
        begin = int(pointer["offset"])
        found = np.frombuffer(data[begin : begin + int(pointer["length"])], np.float32).reshape(tuple(tensor.dims))
        assert np.array_equal(found, stored[name.removeprefix("model.")])


@pytest.mark.parametrize(
    "file",
    [
        "text_encoder/model.onnx",
        "transformer/model.onnx",
        "transformer/step.onnx",
        "vae/decoder.onnx",
        "vae/encoder.onnx",
    ],
)
def test_no_weight_is_embedded_in_a_graph(exported, file):
    model = onnx.load(exported / file, load_external_data=False)
    embedded = [t for t in model.graph.initializer if t.data_location != onnx.TensorProto.EXTERNAL]
    assert sum(t.ByteSize() for t in embedded) < 10_000
    assert all(len(node.metadata_props) == 0 for node in model.graph.node)
    onnx.checker.check_model(str(exported / file))


def test_signatures_match_the_manifest(exported):
    for component in read(exported).components.values():
        session = onnxruntime.InferenceSession(exported / component.graph)
        for declared, actual in [(component.inputs, session.get_inputs()), (component.outputs, session.get_outputs())]:
            assert [s.name for s in declared] == [a.name for a in actual]
            assert [list(s.shape) for s in declared] == [a.shape for a in actual]


def test_the_manifest_says_where_the_model_comes_from_and_how_to_sample(exported):
    content = read(exported)
    assert content.family == "sd3"
    assert content.t5_tokens == 3
    assert content.sampler == manifest.Sampler("flow-match-euler", 3.0, 1000, 4, 3.0)
    assert content.latents == manifest.Latents(8, 8, 2, 1.5305, 0.0609)
    assert content.sizes == manifest.Sizes((128, 128), 64, 256, 16)
    assert content.provenance.source == "tests"
    assert content.provenance.exporter["torch"] == torch.__version__
    assert content.components["transformer"].parameters == 79456  # less 8,192 of the positional table
    on_disk = {str(p.relative_to(exported)) for p in exported.rglob("*") if p.is_file()} - {"bundle.json"}
    assert set(content.files) == on_disk


def test_the_positional_table_is_cropped_for_the_size_asked(exported, tiny_checkpoint):
    from diffusers import SD3Transformer2DModel

    model = SD3Transformer2DModel.from_pretrained(tiny_checkpoint / "transformer").eval()
    session = onnxruntime.InferenceSession(exported / "transformer/model.onnx")
    for height, width in [(2, 32), (32, 2), (14, 6)]:
        latents, text = torch.randn(2, 8, height, width), torch.randn(2, 5, 48)
        pooled, time = torch.randn(2, 40), torch.tensor([999.0, 0.5])
        with torch.no_grad():
            expected = model(latents, text, pooled, time, return_dict=False)[0].numpy()
        names = [i.name for i in session.get_inputs()]
        feed = dict(zip(names, (t.numpy() for t in (latents, text, pooled, time)), strict=True))
        (found,) = session.run(None, feed)
        assert np.linalg.norm(found - expected) < 1e-4 * np.linalg.norm(expected)


@pytest.mark.parametrize("folder", ["tokenizer", "tokenizer_2"])
def test_the_tokenizer_file_gives_the_ids_of_diffusers(exported, tiny_checkpoint, folder):
    from transformers import CLIPTokenizer

    from segue.runtime.bundle.tokens import load_tokenizer, tokenise

    spec = read(exported).tokenizers[folder]
    reference = CLIPTokenizer.from_pretrained(tiny_checkpoint / folder)
    assert (spec.length, spec.pad_id) == (24, reference.pad_token_id)
    for prompt in ["a RED heart!", "", "hear the\u00a0car, dear!" * 9]:
        expected = reference(prompt, padding="max_length", max_length=24, truncation=True).input_ids
        assert tokenise(load_tokenizer(exported / spec.file), spec, prompt).ids.tolist() == [expected]


def test_unpacking_gives_the_checkpoint_back_byte_for_byte(exported, tiny_checkpoint, tmp_path):
    unpack(exported, tmp_path / "out")
    before = {p.relative_to(tiny_checkpoint): p.read_bytes() for p in tiny_checkpoint.rglob("*") if p.is_file()}
    after = {p.relative_to(tmp_path / "out"): p.read_bytes() for p in (tmp_path / "out").rglob("*") if p.is_file()}
    assert after == before


def test_diffusers_loads_what_was_unpacked(exported, tmp_path):
    from diffusers import StableDiffusion3Pipeline

    unpack(exported, tmp_path / "out")
    absent = {"text_encoder_3": None, "tokenizer_3": None}  # as diffusers documents SD3 without T5
    pipeline = StableDiffusion3Pipeline.from_pretrained(tmp_path / "out", **absent)
    pipeline.set_progress_bar_config(disable=True)
    image = pipeline("a red heart", num_inference_steps=1, height=64, width=64, output_type="np", max_sequence_length=3)
    assert image.images.shape == (1, 64, 64, 3)


def test_unpacking_an_altered_bundle_names_both_hashes(exported, tmp_path):
    shutil.copytree(exported, tmp_path / "bundle")
    path = tmp_path / "bundle/vae/config.json"
    path.write_text(path.read_text() + " ")
    with pytest.raises(BundleError, match=r"vae/config.json .* was altered: its sha256 is \w{64}.* says \w{64}"):
        unpack(tmp_path / "bundle", tmp_path / "out")
    assert [p.name for p in tmp_path.iterdir()] == ["bundle"]


def test_half_precision_converts_files_and_passes_its_gate(half, tiny_checkpoint):
    content = read(half)
    assert {c.precision for c in content.components.values()} == {"fp16"}
    assert all(r.relative_l2 < 5e-3 and r.gate == 5e-3 for r in content.parity)
    assert len(content.parity) == 12
    weights = "transformer/diffusion_pytorch_model.safetensors"
    assert content.files[weights].bytes < 0.6 * (tiny_checkpoint / weights).stat().st_size
    assert content.components["transformer"].inputs[0].dtype == "float16"
    assert json.loads((half / "text_encoder/config.json").read_text())["dtype"] == "float16"


def test_a_converted_bundle_unpacks_to_a_checkpoint_in_that_precision(half, tiny_checkpoint, tmp_path):
    from diffusers import SD3Transformer2DModel

    unpack(half, tmp_path / "out")
    options = {"torch_dtype": torch.float16}
    found = SD3Transformer2DModel.from_pretrained(tmp_path / "out/transformer", **options).state_dict()
    expected = SD3Transformer2DModel.from_pretrained(tiny_checkpoint / "transformer", **options).state_dict()
    assert all(torch.equal(found[name], expected[name]) for name in expected)


def test_a_damaged_weight_fails_parity(exported, tmp_path):
    shutil.copytree(exported, tmp_path / "bundle")
    component = read(exported).components["text_encoder"]
    model = onnx.load(tmp_path / "bundle" / component.graph, load_external_data=False)
    tensors = {t.name: t for t in model.graph.initializer}
    moved = tensors["model.text_model.encoder.layers.0.mlp.fc1.bias"]
    other = tensors["model.text_model.encoder.layers.1.mlp.fc1.bias"]
    del moved.external_data[:]
    moved.external_data.extend(other.external_data)  # an offset that points at the wrong layer
    onnx.save(model, tmp_path / "bundle" / component.graph)
    with pytest.raises(ParityError, match="text_encoder in ONNX Runtime differs from PyTorch"):
        parity.check(tmp_path / "bundle", {"text_encoder": component})


def test_a_component_beyond_the_free_memory_is_recorded_so(exported):
    from dataclasses import replace

    component = replace(read(exported).components["transformer"], parameters=10**13)
    (result,) = parity.check(exported, {"transformer": component})
    assert (result.note, result.relative_l2, result.gate) == ("not checked: memory", None, None)


@pytest.mark.parametrize("make", [lambda p: p.symlink_to("/etc/hostname"), lambda p: os.mkfifo(p)])
def test_unpacking_refuses_links_and_pipes_as_opening_does(exported, tmp_path, make):
    shutil.copytree(exported, tmp_path / "bundle")
    (tmp_path / "bundle/vae/config.json").unlink()
    make(tmp_path / "bundle/vae/config.json")
    with pytest.raises(BundleError, match="is not a regular file"):
        unpack(tmp_path / "bundle", tmp_path / "out")
    assert [p.name for p in tmp_path.iterdir()] == ["bundle"]


def test_only_a_failed_export_says_that_no_bundle_was_made(exported, tiny_checkpoint, tmp_path, monkeypatch):
    def fail(*arguments):
        raise ParityError("the gate is 0.0001. Report it.")

    monkeypatch.setattr(parity, "check", fail)
    with pytest.raises(ParityError, match=r"^No bundle was made: the gate .*--no-parity"):
        export_module._parity(tmp_path, read(exported).components, lambda event: None)


def test_a_killed_check_is_recorded_as_such_and_leaves_no_twins(exported, tmp_path, monkeypatch):
    child = tmp_path / "child"
    child.write_text(
        f"#!{sys.executable}\nimport json, os, pathlib, sys\n"
        "twin = pathlib.Path(json.load(sys.stdin)['scratch'], 'twin')\ntwin.mkdir()\n"
        "(twin / 'weights').write_bytes(b'x')\nos.kill(os.getpid(), 9)\n"
    )
    child.chmod(0o755)
    (tmp_path / "scratch").mkdir()
    monkeypatch.setattr(sys, "executable", str(child))
    component = read(exported).components["transformer"]
    (result,) = parity.check(exported, {"transformer": component}, scratch=tmp_path / "scratch")
    assert result.note.startswith("not checked: memory (the check was killed")
    assert list((tmp_path / "scratch").iterdir()) == []


@pytest.mark.parametrize(
    ("settings", "key"),
    [({"source": "\ud800"}, "surrogates"), ({"maximum_size": 8}, "maximum_size"), ({"guidance": 2e6}, "guidance")],
)
def test_a_bundle_that_no_reader_opens_is_refused_before_the_work(tiny_checkpoint, tmp_path, settings, key):
    shutil.copytree(tiny_checkpoint, tmp_path / "checkpoint")
    (tmp_path / "checkpoint/segue.json").write_text(json.dumps(settings))
    with pytest.raises(CheckpointError, match=key):
        export(tmp_path / "checkpoint", tmp_path / "out", progress=lambda event: pytest.fail("work began"))
    assert [p.name for p in tmp_path.iterdir()] == ["checkpoint"]


@pytest.mark.parametrize(
    ("file", "change", "message"),
    [
        ("vae/config.json", {"scaling_factor": -1}, r"latents\.scaling = -1\.0"),
        ("scheduler/scheduler_config.json", {"shift": 0}, r"sampler\.shift = 0\.0"),
        ("scheduler/scheduler_config.json", {"num_train_timesteps": 0}, r"sampler\.train_timesteps = 0"),
    ],
)
def test_numbers_that_no_reader_takes_are_named(tiny_checkpoint, tmp_path, file, change, message):
    shutil.copytree(tiny_checkpoint, tmp_path / "checkpoint")
    path = tmp_path / "checkpoint" / file
    path.write_text(json.dumps(json.loads(path.read_text()) | change))
    with pytest.raises(CheckpointError, match=message):
        export(tmp_path / "checkpoint", tmp_path / "out", progress=lambda event: pytest.fail("work began"))


def test_an_existing_target_is_refused_and_left_alone(tiny_checkpoint, tmp_path):
    (tmp_path / "out").mkdir()
    with pytest.raises(OutputError, match="exists already"):
        export(tiny_checkpoint, tmp_path / "out")
    assert list((tmp_path / "out").iterdir()) == []


def test_an_unknown_precision_is_refused(tiny_checkpoint, tmp_path):
    with pytest.raises(UsageError, match="Unknown precision 'int3'"):
        export(tiny_checkpoint, tmp_path / "out", precision="int3")


def test_a_checkpoint_with_half_a_t5_is_refused(tiny_checkpoint, tmp_path):
    shutil.copytree(tiny_checkpoint, tmp_path / "t5")
    index = tmp_path / "t5/model_index.json"
    table = json.loads(index.read_text()) | {"text_encoder_3": ["transformers", "T5EncoderModel"]}
    index.write_text(json.dumps(table))
    (tmp_path / "t5/text_encoder_3").mkdir()
    with pytest.raises(CheckpointError, match="tokenizer_3 as None"):
        export(tmp_path / "t5", tmp_path / "out")
    assert not (tmp_path / "out").exists()


NAMES = p.Prompts((p.Name("red heart", "❤", (), True), p.Name("pizza", "🍕", (), True)), ("noto",), False)


@pytest.fixture
def with_names(tiny_checkpoint, tmp_path):
    """A checkpoint that lists its names and the sizes that it was trained at."""
    shutil.copytree(tiny_checkpoint, tmp_path / "checkpoint")
    path = tmp_path / "checkpoint/segue.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"trained": [[128, 128], [64, 96]]}))
    (tmp_path / "checkpoint/prompts.json").write_bytes(p.dump(NAMES))
    return tmp_path / "checkpoint"


def test_a_checkpoints_names_and_trained_sizes_go_into_its_bundle_and_back(with_names, tmp_path):
    made = export(with_names, tmp_path / "bundle", parity=False)
    opened = reader.verify(tmp_path / "bundle")
    assert opened.manifest == made
    assert (made.sizes.trained, made.prompts) == (((128, 128), (64, 96)), "prompts.json")
    assert made.files["prompts.json"].origin
    assert p.read_prompts(opened) == NAMES
    unpack(tmp_path / "bundle", tmp_path / "again")
    assert (tmp_path / "again/prompts.json").read_bytes() == p.dump(NAMES)


def test_trained_sizes_can_be_said_at_export(with_names, tmp_path):
    made = export(with_names, tmp_path / "bundle", parity=False, trained=[(64, 64)])
    assert made.sizes.trained == ((64, 64),)
    with pytest.raises(UsageError, match="size 40x40"):
        export(with_names, tmp_path / "other", parity=False, trained=[(40, 40)])
    assert not (tmp_path / "other").exists()


def test_a_trained_size_that_cannot_run_and_a_foreign_list_of_names_are_refused(with_names, tmp_path):
    path = with_names / "segue.json"
    good = path.read_text()
    path.write_text(json.dumps(json.loads(good) | {"trained": [[64, 4096]]}))
    with pytest.raises(CheckpointError, match="outside its own range"):
        export(with_names, tmp_path / "out", progress=lambda event: pytest.fail("work began"))
    path.write_text(json.dumps(json.loads(good) | {"trained": [64]}))
    with pytest.raises(CheckpointError, match="trained"):
        export(with_names, tmp_path / "out")
    path.write_text(good)
    (with_names / "prompts.json").write_text('["a prompt"]')
    with pytest.raises(CheckpointError, match=r"prompts\.json is not a list of names.*rename it"):
        export(with_names, tmp_path / "out")
