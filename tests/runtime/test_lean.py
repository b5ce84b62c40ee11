"""The runtime in a fresh interpreter: what it loads, and that it renders without a training framework."""

import subprocess
import sys
from importlib import resources

BLOCKED = ("torch", "diffusers", "transformers", "onnx", "onnx_ir", "onnxscript", "safetensors", "accelerate", "scipy")


def python(code):
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout.split()


def test_importing_segue_loads_none_of_its_dependencies():
    code = (
        "import segue, sys;"
        "print(*({'numpy', 'onnxruntime', 'PIL', 'tokenizers', 'click', 'rich', 'psutil'} & sys.modules.keys()))"
    )
    assert python(code) == []


def test_the_command_line_starts_without_numpy():
    code = "import segue.cli, sys; print(*({'numpy', 'onnxruntime', 'PIL', 'tokenizers'} & sys.modules.keys()))"
    assert python(code) == []


def test_a_star_import_leaves_the_builtin_open_alone():
    assert python("import builtins; from segue import *; print(open is builtins.open, Model.__name__)") == [
        "True",
        "Model",
    ]


def test_type_checkers_are_told_that_segue_is_typed():
    assert resources.files("segue").joinpath("py.typed").is_file()


def test_the_public_names_are_all_there_and_unknown_ones_are_not():
    code = (
        "import segue; [getattr(segue, name) for name in segue.__all__];"
        "print(hasattr(segue, 'nonsense'), set(dir(segue)) >= {'open', 'Model', '__version__'})"
    )
    assert python(code) == ["False", "True"]


def test_a_picture_is_rendered_where_no_training_framework_is_installed(tiny_bundle, tmp_path):
    code = f"""
import sys
for name in {BLOCKED!r}:
    sys.modules[name] = None
import segue
with segue.open({str(tiny_bundle)!r}, threads=1) as model:
    result = model.render(segue.Request("a red heart", seed=7))
segue.write_png({str(tmp_path / "x.png")!r}, result.images[0], result.metadata[0])
print(*(name for name in {BLOCKED!r} if sys.modules[name] is not None))
"""
    assert python(code) == []
    assert (tmp_path / "x.png").read_bytes().startswith(b"\x89PNG")
