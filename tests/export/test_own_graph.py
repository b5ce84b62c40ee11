"""A graph that somebody has already becomes a bundle, and plays."""

import os
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import onnx
import pytest
from click.testing import CliRunner
from onnx import TensorProto, helper, numpy_helper

import segue
from segue import cli
from segue.errors import CheckpointError, SegueError, UsageError
from segue.export.own_graph import Play, import_graph
from segue.runtime.sampling import latents as latent_space
from segue.runtime.sampling.noise import philox_normal

SIDE = 16
FLOAT, HALF, INT64 = TensorProto.FLOAT, TensorProto.FLOAT16, TensorProto.INT64
WEIGHTS = np.random.default_rng(0).normal(size=(3, 3, 5, 5)).astype(np.float32) / 5


def write(path, *, dtype=FLOAT, time=(INT64, []), shape=("b", 3, "h", "w"), labels=False, external=False, gives="same"):
    """Write a consistency UNet of one convolution: tanh(conv(sample) * timestep / 1000 + label), as optimum exports."""
    kind = np.float16 if dtype == HALF else np.float32
    inputs = [helper.make_tensor_value_info("sample", dtype, shape),
              helper.make_tensor_value_info("timestep", time[0], time[1])]  # fmt: skip
    nodes = [
        helper.make_node("Conv", ["sample", "w"], ["made"], pads=[2] * 4),
        helper.make_node("Cast", ["timestep"], ["t"], to=dtype),
        helper.make_node("Reshape", ["t", "four"], ["t4"]),
        helper.make_node("Div", ["t4", "thousand"], ["share"]),
        helper.make_node("Mul", ["made", "share"], ["scaled"]),
        helper.make_node("Tanh", ["scaled" if not labels else "labelled"], ["out_sample"]),
    ]
    if labels:
        inputs.append(helper.make_tensor_value_info("class_labels", INT64, ["b"]))
        nodes[5:5] = [
            helper.make_node("Cast", ["class_labels"], ["c"], to=dtype),
            helper.make_node("Add", ["scaled", "c"], ["labelled"]),
        ]
    if gives == "sum":
        nodes.append(helper.make_node("ReduceSum", ["out_sample"], ["total"], keepdims=0))
    constants = {"w": WEIGHTS.astype(kind), "four": np.array([-1, 1, 1, 1]), "thousand": np.array(1000, kind)}
    held = [numpy_helper.from_array(array, name) for name, array in constants.items()]
    name = "total" if gives == "sum" else "out_sample"
    outputs = [helper.make_tensor_value_info(name, dtype, [] if gives == "sum" else shape)]
    made = helper.make_graph(nodes, "unet", inputs, outputs, held)
    model = helper.make_model(made, opset_imports=[helper.make_opsetid("", 18)], ir_version=9)
    onnx.save(model, path, save_as_external_data=external, location="unet.data", size_threshold=100)
    return path


def expected(seed, size=(SIDE, SIDE), timestep=999, label=0.0):
    """Return the picture that the network itself gives for the noise of that seed, as strong as at `timestep`."""
    import torch

    kept = np.cumprod(1 - np.linspace(0.00085**0.5, 0.012**0.5, 1000) ** 2)[timestep]
    noise = philox_normal((3, *size), seed, image=0)[None] * np.float32((1 - kept) ** 0.5)
    made = torch.nn.functional.conv2d(torch.from_numpy(noise.copy()), torch.from_numpy(WEIGHTS), padding=2)
    return latent_space.to_bytes(torch.tanh(made * timestep / 1000 + label).numpy())[0]


def close(one, other):
    assert one.shape == other.shape
    assert np.abs(one.astype(int) - other).max() <= 1


@pytest.mark.parametrize(
    ("form", "size"),
    [
        ({}, (SIDE, SIDE)),
        ({"time": (FLOAT, ["b"])}, (SIDE, SIDE)),
        ({"time": (INT64, [1]), "shape": (1, 3, 12, 20)}, None),
        ({"external": True}, (8, 24)),
    ],
)
def test_a_one_step_consistency_network_of_pixels_draws_what_it_gives(tmp_path, form, size):
    import_graph(write(tmp_path / "unet.onnx", **form), tmp_path / "mine", Play(size=size))
    (tmp_path / "unet.onnx").unlink()
    size = size or (12, 20)
    with segue.open(tmp_path / "mine") as model:
        close(model.generate("", seed=4), expected(4, size))
        assert model.sizes == (size,)
        assert model.steps == 1


def test_weights_listed_as_inputs_and_inner_names_of_the_runtime_do_not_matter(tmp_path):
    """Old exporters list every weight among the inputs, and a graph may use any name inside."""
    model = onnx.load(write(tmp_path / "unet.onnx"))
    model.graph.input.append(helper.make_tensor_value_info("w", FLOAT, WEIGHTS.shape))
    taken = {"made": "hidden_states", "share": "segue_timestep", "scaled": "prediction"}
    for node in model.graph.node:
        for names in (node.input, node.output):
            names[:] = [taken.get(name, name) for name in names]
    onnx.save(model, tmp_path / "unet.onnx")
    import_graph(tmp_path / "unet.onnx", tmp_path / "mine", Play(size=(SIDE, SIDE)))
    with segue.open(tmp_path / "mine") as opened:
        close(opened.generate("", seed=4), expected(4))


def test_half_precision_and_a_fixed_class_are_taken(tmp_path):
    write(tmp_path / "unet.onnx", dtype=HALF, labels=True)
    made = import_graph(
        tmp_path / "unet.onnx", tmp_path / "mine", Play(size=(SIDE, SIDE), fixed={"class_labels": 1}, timesteps=(499,))
    )
    assert made.components["unet"].precision == "fp16"
    with segue.open(tmp_path / "mine") as model:
        difference = model.generate("", seed=4).astype(int) - expected(4, timestep=499, label=1.0)
    assert np.abs(difference).max() <= 3


def test_a_network_of_noise_is_played_in_several_steps(tmp_path):
    """LCM in two steps, with fresh noise between them."""
    write(tmp_path / "unet.onnx")
    play = Play("lcm", "epsilon", timesteps=(999, 499), size=(SIDE, SIDE))
    import_graph(tmp_path / "unet.onnx", tmp_path / "mine", play)
    with segue.open(tmp_path / "mine") as model:
        picture = model.render(segue.Request("", seed=4))
        assert picture.metadata[0]["steps"] == 2
        assert np.array_equal(picture.images[0], model.generate("", seed=4))


def test_the_command_makes_a_bundle_that_every_command_takes(tmp_path):
    write(tmp_path / "unet.onnx")
    environment = {**os.environ, "XDG_CACHE_HOME": str(tmp_path / "cache")}

    def run(*arguments):
        done = subprocess.run([sys.executable, "-m", "segue.cli", *map(str, arguments)], cwd=tmp_path, env=environment,
                              capture_output=True, text=True)  # fmt: skip
        assert done.returncode == 0, done.stderr
        return done.stdout + done.stderr

    assert "segue render mine ''" in run("import", "unet.onnx", "--sampler", "euler", "--size", SIDE, "-o", "mine")
    run("render", "./mine", "", "--seed", 4, "-o", "one.png")
    from PIL import Image

    close(np.asarray(Image.open(tmp_path / "one.png")), expected(4))
    assert "draws without a prompt, so the prompt has no effect" in run("render", "./mine", "dog", "-o", "two.png")
    assert "none: it draws without a prompt" in run("inspect", "./mine")
    for command in (("verify", "./mine"), ("plan", "./mine"), ("bench", "./mine", "--repeats", 2), ("list", "./mine")):
        run(*command)


@pytest.mark.parametrize(
    ("form", "play", "error", "words"),
    [
        ({}, {}, UsageError, r"of any size.*--size 64x64"),
        ({"shape": (1, 3, 8, 8)}, {"size": (16, 16)}, UsageError, "takes pictures of 8x8, and --size is 16x16"),
        ({"shape": (4, 3, 8, 8)}, {}, CheckpointError, "takes 4 pictures at once"),
        ({"shape": ("b", 4, 8, 8)}, {}, CheckpointError, r"sample \[b, 4, 8, 8\].*one picture"),
        ({"labels": True}, {"size": (8, 8)}, CheckpointError, "--fix NAME=NUMBER"),
        ({}, {"size": (8, 8), "fixed": {"label": 1.0}}, UsageError, "no input 'label'; it takes sample"),
        ({}, {"size": (8, 8), "sampler": "flow"}, UsageError, "Choose one of euler"),
        ({"labels": True}, {"size": (8, 8), "fixed": {"class_labels": 1.5}}, UsageError, "whole numbers for class_lab"),
        ({"labels": True}, {"size": (8, 8), "fixed": {"class_labels": np.nan}}, UsageError, "whole numbers for class"),
        ({}, {"size": (8, 8), "timesteps": (249, 999)}, UsageError, "timesteps are 249, 999. Give them from noise"),
        ({"gives": "sum", "shape": (1, 3, 8, 8)}, {}, CheckpointError, "must have the picture's shape"),
    ],
)
def test_a_graph_of_another_form_is_refused_by_what_it_takes(tmp_path, form, play, error, words):
    write(tmp_path / "unet.onnx", **form) if "h" in form.get("shape", "h") or form["shape"][1] == 3 else _wide(tmp_path)
    with pytest.raises(error, match=words):
        import_graph(tmp_path / "unet.onnx", tmp_path / "mine", Play(**play))
    assert not (tmp_path / "mine").exists()


def _wide(folder):
    """Write a network of latents: four channels."""
    value = [helper.make_tensor_value_info("sample", FLOAT, ["b", 4, 8, 8]),
             helper.make_tensor_value_info("timestep", FLOAT, [1])]  # fmt: skip
    nodes = [helper.make_node("Add", ["sample", "timestep"], ["y"])]
    made = helper.make_graph(nodes, "g", value, [helper.make_tensor_value_info("y", FLOAT, ["b", 4, 8, 8])])
    onnx.save(helper.make_model(made, opset_imports=[helper.make_opsetid("", 18)], ir_version=9), folder / "unet.onnx")


def test_guidance_and_files_that_are_no_graph_are_refused(tmp_path):
    import_graph(write(tmp_path / "unet.onnx", shape=(1, 3, 8, 8)), tmp_path / "mine")
    with segue.open(tmp_path / "mine") as model, pytest.raises(UsageError, match="no prompt to be guided by"):
        model.generate("", guidance=3)
    (tmp_path / "bad.onnx").write_bytes(b"no graph")
    for name in ("bad.onnx", "none.onnx"):
        with pytest.raises(SegueError, match=name):
            import_graph(tmp_path / name, tmp_path / "other")


def test_a_graph_whose_data_lies_elsewhere_is_refused(tmp_path):
    (tmp_path / "in").mkdir()
    path = write(tmp_path / "in/unet.onnx", external=True)
    (tmp_path / "in/unet.data").rename(tmp_path / "secret")
    model = onnx.load(path, load_external_data=False)
    for tensor in model.graph.initializer:
        for entry in tensor.external_data:
            if entry.key == "location":
                entry.value = "../secret"
    path.write_bytes(model.SerializeToString())
    with pytest.raises(CheckpointError, match="not a file beside it"):
        import_graph(path, tmp_path / "mine", Play(size=(8, 8)))


def test_a_graph_whose_data_is_cut_short_is_refused(tmp_path):
    write(tmp_path / "unet.onnx", external=True)
    os.truncate(tmp_path / "unet.data", 10)
    with pytest.raises(CheckpointError, match=r"reads 'w' beyond the end of 'unet.data'"):
        import_graph(tmp_path / "unet.onnx", tmp_path / "mine", Play(size=(8, 8)))


@pytest.mark.parametrize(
    ("node", "domain", "outputs", "words"),
    [
        (("Gelu", ["sum"]), "com.microsoft", FLOAT, "cannot be counted: No schema registered for 'Gelu'"),
        (("Frob", ["sum"]), "x.y", FLOAT, "does not run"),
        (("Reshape", ["sum", "timestep"]), "", FLOAT, "does not run"),
        (("Identity", ["sum"]), "", None, "must state the type"),
        (("Cast", ["sum"]), "", INT64, "give a picture in fp32 or fp16"),
    ],
)
def test_a_graph_that_cannot_be_played_is_refused(tmp_path, node, domain, outputs, words):
    options = {"to": INT64} if node[0] == "Cast" else {}
    nodes = [
        helper.make_node("Add", ["sample", "timestep"], ["sum"]),
        helper.make_node(*node, ["y"], domain=domain, **options),
    ]
    inputs = [helper.make_tensor_value_info("sample", FLOAT, ["b", 3, 8, 8]),
              helper.make_tensor_value_info("timestep", FLOAT, [1])]  # fmt: skip
    gives = onnx.ValueInfoProto(name="y")
    if outputs is not None:
        gives = helper.make_tensor_value_info("y", outputs, ["b", 3, 8, 8])
    opsets = [helper.make_opsetid(name, 18 if name == "" else 1) for name in {"", domain}]
    made = helper.make_model(helper.make_graph(nodes, "g", inputs, [gives]), opset_imports=opsets, ir_version=9)
    onnx.save(made, tmp_path / "unet.onnx")
    with pytest.raises(CheckpointError, match=words):
        import_graph(tmp_path / "unet.onnx", tmp_path / "mine")
    assert not (tmp_path / "mine").exists()


def test_the_page_shows_commands_that_work():
    page = (Path(segue.__file__).parent / "docs/guide/own-graph.md").read_text(encoding="utf-8")
    told = re.findall(r"^    segue import (.*)$", page, re.MULTILINE)
    assert told
    for line in told:
        found = CliRunner().invoke(cli.cli, ["import", *line.split()])
        assert found.exit_code != 2 or "No such" in str(found.exception), found.output
