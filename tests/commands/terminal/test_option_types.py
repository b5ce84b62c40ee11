"""What the types of options read."""

from pathlib import Path

import click
import pytest

from segue.commands.terminal.option_types import Scaled


@pytest.mark.parametrize(
    ("text", "read"),
    [
        ("style.safetensors", ("style.safetensors", 1.0, "")),
        ("style.safetensors=0.8", ("style.safetensors", 0.8, "")),
        ("a=b.safetensors=-0.5", ("a=b.safetensors", -0.5, "")),
        ("transformer_2:low.safetensors=1", ("low.safetensors", 1.0, "transformer_2")),
        ("transformer_2:low.safetensors", ("low.safetensors", 1.0, "transformer_2")),
        (r"C:\loras\style.safetensors=0.5", (r"C:\loras\style.safetensors", 0.5, "")),
        (r"unet:C:\style.safetensors=2", (r"C:\style.safetensors", 2.0, "unet")),
        ("./a:b.safetensors", ("./a:b.safetensors", 1.0, "")),
    ],
)
def test_a_file_has_a_factor_and_may_name_a_component(text, read):
    path, factor, component = read
    assert Scaled().convert(text, None, None) == (Path(path), factor, component)


def test_a_factor_that_is_no_number_is_refused_with_the_form():
    with pytest.raises(click.BadParameter, match=r"'strong' in 'style=strong' is not a number\. Write FILE=0\.8\."):
        Scaled().convert("style=strong", None, None)
