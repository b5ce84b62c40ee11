"""A LoRA that is played at run time gives what the merged one gives, whatever its names, and leaves no trace."""

import json

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from segue.errors import BusyError, SegueError, UsageError
from segue.export.checkpoint.lora.layouts import original_pieces
from segue.export.checkpoint.lora.merge import Lora
from segue.export.export import export
from segue.runtime.bundle.manifest import Component, TensorSpec
from segue.runtime.bundle.reader import verify
from segue.runtime.lora.inputs import adapted, rank_of
from segue.runtime.pipeline import open_model
from segue.runtime.request import Request

RANK = 6
REQUEST = Request("a red heart", seed=3, steps=2, guidance=1.0, size=64)


def file_of(path, checkpoint, names, rank=3, seed=0):
    """Write a LoRA; `names` gives, by diffusers' or the original name of a module, its name in the file."""
    state = load_file(checkpoint / "transformer/diffusion_pytorch_model.safetensors")
    pieces = original_pieces({k: v.shape for k, v in state.items()})
    generator, tensors = torch.Generator().manual_seed(seed), {}
    for module, name in names.items():
        of = [p.tensor for p in pieces.get(f"{module}.weight", ())] or [f"{module}.weight"]
        rows, taken = sum(len(state[n]) for n in of), state[of[0]].shape[1]
        tensors[f"{name}.lora_down.weight"] = torch.randn(rank, taken, generator=generator) / 5
        tensors[f"{name}.lora_up.weight"] = torch.randn(rows, rank, generator=generator) / 5
        tensors[f"{name}.alpha"] = torch.tensor(2.0)
    save_file(tensors, path)
    return path


DIFFUSERS = {m: f"transformer.{m}" for m in ("transformer_blocks.0.attn.to_q", "transformer_blocks.1.ff.net.2")}
KOHYA = {  # a fused matrix, swapped halves, and a matrix of Gemm
    m: "lora_unet_" + m.replace(".", "_")
    for m in (
        "joint_blocks.0.x_block.attn.qkv", "joint_blocks.1.context_block.adaLN_modulation.1", "t_embedder.mlp.0",
        "final_layer.linear",
    )
}  # fmt: skip


def latents(model):
    return next(model.pictures(REQUEST)).latents


def test_the_manifest_lists_the_inputs_of_each_matrix_of_the_denoiser(adaptable):
    verify(adaptable)
    components = open_model(adaptable).bundle.manifest.components
    assert {name: rank_of(of) for name, of in components.items() if rank_of(of)} == {"transformer": RANK}
    inputs = {spec.name: (spec.dtype, spec.shape) for spec in components["transformer"].inputs}
    assert inputs["lora.transformer_blocks.1.ff.net.2.A"] == ("float32", (RANK, 128))
    assert inputs["lora.transformer_blocks.1.ff.net.2.B"] == ("float32", (32, RANK))
    assert inputs["lora.scale"] == ("float32", (1,))
    state = load_file(adaptable / "transformer/diffusion_pytorch_model.safetensors")
    matrices = {n.removesuffix(".weight") for n, v in state.items() if v.ndim == 2 and n.endswith(".weight")}
    assert {n[5:-2] for n in inputs if n.startswith("lora.") and n != "lora.scale"} == matrices


def test_inputs_without_one_fixed_rank_take_no_lora():
    shapes = {"a.A": ("rank", 4), "a.B": (4, "rank"), "b.A": (2, 4), "b.B": (4, 3), "c.A": (2, 4)}
    inputs = tuple(TensorSpec(f"lora.{name}", "float32", shape) for name, shape in shapes.items())
    component = Component("g.onnx", (), "fp32", 0, 18, inputs, ())
    assert not list(adapted(component))
    assert rank_of(component) == 0


@pytest.mark.slow
@pytest.mark.parametrize("names", [DIFFUSERS, KOHYA], ids=["diffusers", "kohya"])
def test_what_is_played_equals_what_is_merged(adaptable, tiny_checkpoint, tmp_path, names):
    file = file_of(tmp_path / "l.safetensors", tiny_checkpoint, names)
    export(tiny_checkpoint, tmp_path / "merged", loras=[Lora(file, 0.7)], parity=False)
    with open_model(tmp_path / "merged") as model:
        expected = latents(model)
    with open_model(adaptable) as model:
        plain = latents(model)
        model.lora(file, 0.7)
        found = latents(model)
    assert np.linalg.norm(found - expected) / np.linalg.norm(expected) < 1e-5
    assert np.linalg.norm(plain - expected) / np.linalg.norm(expected) > 1e-3


@pytest.mark.slow
def test_without_a_file_it_draws_what_the_plain_bundle_draws(adaptable, exported):
    with open_model(adaptable) as model, open_model(exported) as plain:
        assert np.allclose(latents(model), latents(plain), atol=1e-5)


@pytest.mark.slow
@pytest.mark.parametrize("budget", [None, "200MiB"])
def test_swapping_back_gives_the_same_bytes(adaptable, tiny_checkpoint, tmp_path, budget):
    a = file_of(tmp_path / "a.safetensors", tiny_checkpoint, DIFFUSERS)
    b = file_of(tmp_path / "b.safetensors", tiny_checkpoint, KOHYA, rank=6, seed=1)
    with open_model(adaptable, budget=budget) as model:
        none = latents(model)
        made = []
        for file in (a, b, a):
            model.lora(file)
            made.append(latents(model))
        model.lora(None)
        again = latents(model)
    assert np.array_equal(made[0], made[2])
    assert not np.array_equal(made[0], made[1])
    assert np.array_equal(none, again)


@pytest.mark.slow
def test_files_add_up_and_stand_in_the_metadata(adaptable, tiny_checkpoint, tmp_path):
    a = file_of(tmp_path / "a.safetensors", tiny_checkpoint, DIFFUSERS)
    with open_model(adaptable) as model:
        model.lora(a, 0.5)
        model.lora(a, 0.25, add=True)
        both = next(model.pictures(REQUEST))
        model.lora(a, 0.75)
        once = latents(model)
    assert np.allclose(both.latents, once, atol=1e-5)
    assert [(of["file"], of["factor"]) for of in both.metadata["loras"]] == [
        ("a.safetensors", 0.5),
        ("a.safetensors", 0.25),
    ]


@pytest.mark.parametrize(
    ("change", "why"),
    [
        (lambda t: {k.replace("attn.to_q", "attn.nope"): v for k, v in t.items()}, "takes no LoRA at run time in this"),
        (lambda t: t | {"transformer.pos_embed.proj.lora_down.weight": torch.ones(1, 8, 2, 2)}, "takes no LoRA at run"),
        (lambda t: t | {"transformer.proj_out.diff": torch.ones(32, 32)}, r"proj_out.diff'; at run time .* Merge the"),
        (lambda t: t | {"transformer.proj_out.alpha": torch.ones(1)}, "at run time a change is two halves"),
        (lambda t: {k: v[:, :-1].contiguous() if "up" in k else v for k, v in t.items()}, "a weight of"),
        (lambda t: {k: v.repeat(3, 1) if "down" in k else v.repeat(1, 3) if "up" in k else v for k, v in t.items()},
         r"to rank 9, above .* --lora-rank 9"),
        (lambda t: {k: v * 1e38 for k, v in t.items()}, "overflows the precision of transformer"),
        (lambda t: t | {"x.wrong": torch.ones(1)}, "not part of a LoRA that Segue knows"),
        (lambda t: t | {k.replace("transformer.", "diffusion_model."): v.clone() for k, v in t.items()},
         r"changes one weight as '.*to_q' and as '.*to_q'|changes one weight as '.*net.2' and as '.*net.2'"),
    ],
)  # fmt: skip
def test_what_cannot_be_played_is_refused_with_the_key_and_the_earlier_file_stays(
    adaptable, tiny_checkpoint, tmp_path, change, why
):
    file = file_of(tmp_path / "a.safetensors", tiny_checkpoint, DIFFUSERS)
    bad = tmp_path / "bad.safetensors"
    save_file({k: v.contiguous() for k, v in change(load_file(file)).items()}, bad)
    with open_model(adaptable) as model:
        model.lora(file)
        before = model._components.adapters.feeds("transformer")
        with pytest.raises(SegueError, match=why):
            model.lora(bad)
        assert model._components.adapters.feeds("transformer") is before


def test_ranks_of_several_files_must_fit_together(adaptable, tiny_checkpoint, tmp_path):
    file = file_of(tmp_path / "a.safetensors", tiny_checkpoint, DIFFUSERS, rank=4)
    with open_model(adaptable) as model:
        model.lora(file)
        with pytest.raises(UsageError, match="to rank 8, and the bundle 'tiny' takes 6"):
            model.lora(file, add=True)
        with pytest.raises(UsageError, match="Give a finite number"):
            model.lora(file, float("nan"))
        with pytest.raises(UsageError, match="vae_decoder of the bundle 'tiny' takes no LoRA"):
            model.lora(file, component="vae_decoder")


def test_a_bundle_without_the_inputs_says_how_to_export_it(exported, tiny_checkpoint, tmp_path):
    file = file_of(tmp_path / "a.safetensors", tiny_checkpoint, DIFFUSERS)
    with open_model(exported) as model, pytest.raises(UsageError, match="Export the checkpoint with --lora-rank"):
        model.lora(file)


@pytest.mark.slow
def test_a_model_that_draws_refuses_another_file(adaptable, tiny_checkpoint, tmp_path):
    file = file_of(tmp_path / "a.safetensors", tiny_checkpoint, DIFFUSERS)
    with open_model(adaptable) as model:
        pictures = model.pictures(Request("a red heart", steps=1, size=64, count=2))
        next(pictures)
        with pytest.raises(BusyError):
            model.lora(file)
        pictures.close()
        model.lora(file)


def test_the_names_in_a_bundle_are_checked(adaptable, tiny_checkpoint, tmp_path, monkeypatch):
    from segue.errors import BundleError
    from segue.runtime.lora import adapter

    rows = {"m": 4}
    for content in ([1], {"x": [["m", [[0, 5]]]]}, {"x": [["m", [[-1, 4]]]]}, {"x": [["n", [[0, 4]]]]}, {"x": 3},
                    {"x": [["m", [[0, float("inf")]]]]}):  # fmt: skip
        (tmp_path / "n.json").write_text(json.dumps(content))
        with pytest.raises(BundleError, match="not as Segue writes it"):
            adapter._original(tmp_path / "n.json", rows)
