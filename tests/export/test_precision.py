"""Files that hold several precisions are exported as they are, and what a checkpoint's T5 brings comes along."""

import hashlib
import io
import json
import shutil

import numpy as np
import onnx
import pytest
import torch
from safetensors.torch import load_file, save_file

from segue.errors import CheckpointError
from segue.export.checkpoint import read
from segue.export.checks import oracle, parity
from segue.export.checks.oracle import Case
from segue.export.export import export
from segue.export.families.modules import text_encoder
from segue.export.families.registry import find
from segue.export.graphs import trace
from segue.export.unpack import unpack
from segue.runtime.bundle import bundle_json, manifest
from segue.runtime.bundle.tokens import load_tokenizer

WEIGHTS = "diffusion_pytorch_model.safetensors"
T5_LENGTH = 8


def edit(path, **changes):
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


def hashes(root):
    return {
        str(path.relative_to(root)): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in root.rglob("*")
        if path.is_file()
    }


def write_spiece(folder):
    """Write a tokenizer that has spiece.model only, as T5's authors publish it; return the size of its vocabulary."""
    import sentencepiece

    folder.mkdir(parents=True)
    model = io.BytesIO()
    texts = ["a red heart", "a photo of a cat sitting", "it's 2024's café naïve", "a hare beating a drum 0123456789"]
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(texts * 20), model_writer=model, vocab_size=80, hard_vocab_limit=False, pad_id=0,
        eos_id=1, unk_id=2, bos_id=-1, minloglevel=2,
    )  # fmt: skip
    (folder / "spiece.model").write_bytes(model.getvalue())
    config = {"tokenizer_class": "T5Tokenizer", "extra_ids": 0, "model_max_length": 512, "eos_token": "</s>",
              "pad_token": "<pad>", "unk_token": "<unk>"}  # fmt: skip
    (folder / "tokenizer_config.json").write_text(json.dumps(config))
    return sentencepiece.SentencePieceProcessor(model_proto=model.getvalue()).get_piece_size()


@pytest.fixture(scope="module")
def published(make_checkpoint, tmp_path_factory):
    """A Stable Diffusion 3 whose T5 was loaded in fp16 and saved: transformers keeps `wo` in fp32."""
    from transformers import T5Config, T5EncoderModel

    root = make_checkpoint(seed=5)
    size = write_spiece(root / "tokenizer_3")
    torch.manual_seed(5)
    config = T5Config(vocab_size=size, d_model=48, d_kv=8, d_ff=64, num_layers=2, num_heads=4)
    whole = tmp_path_factory.mktemp("t5")
    T5EncoderModel(config).save_pretrained(whole)
    T5EncoderModel.from_pretrained(whole, dtype=torch.float16).save_pretrained(root / "text_encoder_3")
    added = {"text_encoder_3": ["transformers", "T5EncoderModel"], "tokenizer_3": ["transformers", "T5Tokenizer"]}
    edit(root / "model_index.json", **added)
    edit(root / "segue.json", t5_tokens=T5_LENGTH)
    return root


@pytest.fixture(scope="module")
def bundle(published, tmp_path_factory):
    """The bundle of `published`, exported without an option, and the notes of its export."""
    notes = []
    out = tmp_path_factory.mktemp("bundle") / "mixed"
    export(published, out, progress=lambda event: notes.append(event.text) if event.stage == "note" else None)
    return out, notes


@pytest.mark.slow
def test_a_t5_with_some_layers_in_fp32_is_exported_as_it_is(bundle, published, tmp_path):
    out, notes = bundle
    stored = load_file(published / "text_encoder_3/model.safetensors")
    assert {tensor.dtype for tensor in stored.values()} == {torch.float16, torch.float32}
    made = bundle_json.parse((out / "bundle.json").read_bytes(), "bundle.json")
    assert made.components["text_encoder_3"].precision == "fp16"
    assert "text_encoder_3 holds fp16 and fp32; its graph computes in fp16" in notes
    assert all(p.relative_l2 < p.gate for p in made.parity)
    unpack(out, tmp_path / "back")
    assert hashes(tmp_path / "back") == hashes(published)


@pytest.mark.slow
def test_a_bundle_of_a_t5_with_two_precisions_draws_as_diffusers_does(bundle):
    (found,) = oracle.compare(bundle[0], [Case("a red heart of a hare", (64, 96), 5.0, steps=3)])
    assert found.latents < 5e-3  # T5 in fp16
    assert found.psnr > 45


@pytest.mark.slow
def test_a_tokenizer_that_is_spiece_model_alone_gives_the_ids_of_its_own_library(bundle, published):
    import sentencepiece

    written = load_tokenizer(bundle[0] / "tokenizer_3/tokenizer.json")
    own = sentencepiece.SentencePieceProcessor(model_file=str(published / "tokenizer_3/spiece.model"))
    for text in ("a red heart", "a photo of a CAT", "it's 2024's café — naïve 🦊"):
        assert written.encode(text).ids == [*own.encode(text), own.eos_id()]


@pytest.mark.parametrize(("most", "few"), [("float32", "float16"), ("bfloat16", "float32"), ("float16", "float32")])
def test_a_graph_computes_in_the_precision_of_most_weights_and_casts_the_others(tiny_checkpoint, tmp_path, most, few):
    """The graph gives what it gives if all weights are converted to its precision beforehand."""
    import onnxruntime

    kind = {"float32": "fp32", "float16": "fp16", "bfloat16": "bf16"}[most]
    shutil.copytree(tiny_checkpoint / "text_encoder", tmp_path / "text_encoder")
    path = tmp_path / "text_encoder/model.safetensors"
    tensors = load_file(path)
    rare = [name for name in tensors if "layer_norm" in name or "fc1" in name]
    mixed = {name: t.to(getattr(torch, few if name in rare else most)) for name, t in tensors.items()}
    found = {}
    for name, saved in (("mixed", mixed), ("plain", {n: t.to(getattr(torch, most)) for n, t in mixed.items()})):
        save_file(saved, path, {"format": "pt"})
        part = read.read_part(tmp_path, "text_encoder")
        assert read.precision(part) == kind
        graph = text_encoder("text_encoder", part.config)
        written = trace.write(graph, kind, part.tensors, path.with_name(f"{name}.onnx"))
        assert written.files == ("text_encoder/model.safetensors",)
        if kind != "bf16":  # ONNX Runtime's CPU kernels do not run it
            session = onnxruntime.InferenceSession(path.with_name(f"{name}.onnx"), providers=["CPUExecutionProvider"])
            found[name] = session.run(None, {"input_ids": np.arange(12)[None]})
    for one, other in zip(found.get("mixed", ()), found.get("plain", ()), strict=True):
        assert np.array_equal(one, other)
    onnx.checker.check_model(str(path.with_name("mixed.onnx")))
    casts = [n for n in onnx.load(path.with_name("mixed.onnx"), load_external_data=False).graph.node
             if n.op_type == "Cast" and n.input[0].removeprefix("model.") in rare]  # fmt: skip
    assert len(casts) == len(rare)


def test_eight_bit_floats_are_refused(tiny_checkpoint, tmp_path):
    shutil.copytree(tiny_checkpoint / "vae", tmp_path / "vae")
    tensors = load_file(tmp_path / "vae" / WEIGHTS)
    first = min(tensors)
    save_file(tensors | {first: tensors[first].to(torch.float8_e4m3fn)}, tmp_path / "vae" / WEIGHTS)
    with pytest.raises(CheckpointError, match=r"vae are in F32 and F8_E4M3.*Dequantise"):
        read.precision(read.read_part(tmp_path, "vae"))


@pytest.mark.slow
def test_a_wan_in_bf16_whose_norms_stay_in_fp32_is_exported_as_it_is(video_checkpoint, tmp_path):
    """diffusers keeps norms and time embeddings of Wan in fp32, and saves them so."""
    from diffusers import WanTransformer3DModel

    root = tmp_path / "wan"
    shutil.copytree(video_checkpoint, root)
    model = WanTransformer3DModel.from_pretrained(root / "transformer", torch_dtype=torch.bfloat16)
    shutil.rmtree(root / "transformer")
    model.save_pretrained(root / "transformer")
    part = read.read_part(root, "transformer")
    assert set(read.dtypes(part)) == {"BF16", "F32"}
    assert read.precision(part) == "bf16"
    family = find(read.read_index(root))
    configs = {folder: read.read_json(root / folder / "config.json", root) for folder in family.folders}
    graph = next(graph for graph in family.graphs(configs) if graph.component == "transformer")
    written = trace.write(graph, "bf16", part.tensors, root / "transformer/model.onnx")
    onnx.checker.check_model(str(root / "transformer/model.onnx"))
    component = manifest.Component("transformer/model.onnx", written.files, "bf16", written.parameters, 23, (), ())
    for found in parity.check(root, {"transformer": component}, scratch=tmp_path):
        assert found.relative_l2 is not None
        assert found.relative_l2 < found.gate
