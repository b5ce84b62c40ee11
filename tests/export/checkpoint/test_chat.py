"""A chat template becomes two plain texts at export, and the runtime gives diffusers' tokens without the template."""

import pytest
from tokenizers import Tokenizer

from segue.errors import CheckpointError
from segue.export.checkpoint import tokenizer
from segue.runtime.bundle import manifest, tokens
from segue.runtime.bundle.manifest import Template
from support.qwen3 import TEMPLATE, write_chat_tokenizer

PROMPTS = ("", "a red heart", "\n\nred\n", "a 'quoted' <|im_end|> word", "日本語 🦊", "red " * 60)


def written(folder, padding, **chat):
    return tokenizer.write(folder, "t", 64, "Qwen2Tokenizer", Template("", "", 0, padding, False), chat)


@pytest.mark.parametrize(("thinking", "padding"), [(False, "end"), (True, "none")])
@pytest.mark.parametrize("prompt", PROMPTS)
def test_a_prompt_gets_the_tokens_of_the_pipelines_chat(tmp_path, thinking, padding, prompt):
    from transformers import Qwen2Tokenizer

    write_chat_tokenizer(tmp_path / "t")
    made = written(tmp_path, padding, enable_thinking=thinking)
    theirs = Qwen2Tokenizer.from_pretrained(tmp_path / "t")
    text = theirs.apply_chat_template(
        [{"role": "user", "content": prompt}], tokenize=False, add_generation_prompt=True, enable_thinking=thinking
    )
    wanted = theirs(text, padding="max_length", max_length=64, truncation=True)
    real = 64 if padding == "end" else sum(wanted.attention_mask)
    spec = manifest.Tokenizer(made.file, made.length, made.pad_id, made.template)
    found = tokens.tokenise(tokens.load_tokenizer(tmp_path / made.file), spec, prompt)
    assert found.ids.tolist() == [wanted.input_ids[:real]]
    assert found.mask.tolist() == [wanted.attention_mask[:real]]
    assert bool(found.cut) == (prompt == PROMPTS[-1])


def test_the_texts_around_a_prompt_and_their_tokens_are_stored(tmp_path):
    write_chat_tokenizer(tmp_path / "t")
    made = written(tmp_path, "end", enable_thinking=False).template
    after = "<|im_end|>\n<|im_start|>assistant\n<think>\n\n</think>\n\n"
    assert (made.before, made.after) == ("<|im_start|>user\n", after)
    whole = Tokenizer.from_file(str(tmp_path / "t/tokenizer.json")).encode(made.before + made.after)
    assert made.tokens == len(whole.ids)


@pytest.mark.parametrize(
    ("changed", "said"),
    [
        ({"chat_template": TEMPLATE.replace("message.content", "message.content|trim")}, "changes a prompt"),
        ({"chat_template": TEMPLATE.replace("message.content", "message.content + message.content")}, "changes a"),
        ({"chat_template": "{{ raise_exception('no') }}"}, "cannot be used"),
        ({"chat_template": None}, "cannot be used"),
        ({"padding_side": "left"}, "sets padding_side to 'left'"),
        ({"truncation_side": "left"}, "sets truncation_side to 'left'"),
    ],
)
def test_a_tokenizer_whose_chat_is_no_pair_of_texts_is_refused(tmp_path, changed, said):
    write_chat_tokenizer(tmp_path / "t", **changed)
    with pytest.raises(CheckpointError, match=said):
        written(tmp_path, "end", enable_thinking=False)
