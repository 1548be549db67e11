"""Loading, the fingerprint of the weights, and every way in which a model can be wrong."""

import json
import os
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from transformers import (
    AutoTokenizer,
    BertConfig,
    BertLMHeadModel,
    PreTrainedModel,
    T5Config,
    T5ForConditionalGeneration,
)

from probes.capture import capture
from probes.errors import InputError
from probes.models import (
    context_length,
    last_token_text,
    load,
    render,
    weights_fingerprint,
)
from tests.conftest import NASTY, make_model, make_tokenizer, user

# Loading


def test_a_folder_is_loaded_as_transformers_loads_it(
    tiny_folder: Callable[..., Path], family: str
) -> None:
    chat = load(str(tiny_folder(family)))
    reference = make_model(family)
    assert type(chat.model) is type(reference) and not chat.model.training
    assert weights_fingerprint(chat.model) == weights_fingerprint(reference)
    assert context_length(chat.model) == 512
    assert chat.revision is None and chat.model.dtype == torch.float32
    # AutoTokenizer may choose another class for a saved tokenizer (for qwen2 one that knows
    # <|endoftext|> by itself): the ids of all else must not change.
    for text in (text for text in NASTY if "endoftext" not in text):
        assert render(chat.tokenizer, user(text)) == render(make_tokenizer(), user(text))


def test_dtype_and_device_map(tiny_folder: Callable[..., Path]) -> None:
    folder = str(tiny_folder("llama"))
    for dtype in ("bfloat16", "float16", "float32"):
        chat = load(folder, dtype=dtype, device_map="cpu")
        assert chat.model.dtype == getattr(torch, dtype)
    read = capture(chat.model, chat.tokenizer, ["hi"])
    torch.testing.assert_close(read, capture(make_model("llama"), make_tokenizer(), ["hi"]))


def test_a_chat_template_can_be_given(tiny_folder: Callable[..., Path], tmp_path: Path) -> None:
    folder = str(tiny_folder("llama"))
    plain = load(folder, chat_template="plain")
    messages = [
        {"role": "system", "content": "Rules."},
        *user("hi"),
        {"role": "assistant", "content": "ho"},
        *user("hey"),
    ]
    text = plain.tokenizer.decode(render(plain.tokenizer, messages).ids)
    # This tokenizer begins texts with BOS.
    assert text == "<s>Rules.\nUser: hi\nAssistant: ho\nUser: hey\nAssistant:"
    assert last_token_text(plain.tokenizer, render(plain.tokenizer, user("hi"))) == ":"

    file = tmp_path / "mine.jinja"
    file.write_text("{% for m in messages %}[{{ m['content'] }}]{% endfor %}", encoding="utf-8")
    mine = load(folder, chat_template=str(file))
    assert mine.tokenizer.decode(render(mine.tokenizer, user("hi")).ids) == "[hi]"
    with pytest.raises(InputError, match=r"--chat-template .*nowhere.jinja"):
        load(folder, chat_template=str(tmp_path / "nowhere.jinja"))


def test_plain_writes_no_bos_where_the_tokenizer_does_not(data_dir: Path, tmp_path: Path) -> None:
    make_model("qwen2", vocab_size=151_646, d_model=16).save_pretrained(tmp_path)
    AutoTokenizer.from_pretrained(data_dir / "tokenizers" / "qwen2.5").save_pretrained(tmp_path)
    tokenizer = load(str(tmp_path), chat_template="plain").tokenizer
    assert tokenizer.decode(render(tokenizer, user("hi")).ids) == "User: hi\nAssistant:"


def test_real_weights_are_loaded_and_a_base_model_needs_a_template(data_dir: Path) -> None:
    folder = str(data_dir / "models" / "stories260k")
    base = load(folder)
    with pytest.raises(InputError, match="--chat-template plain"):
        capture(base.model, base.tokenizer, ["Once upon a time"])
    chat = load(folder, chat_template="plain")
    read = capture(chat.model, chat.tokenizer, ["Once upon a time", "A dog"])
    assert read.shape == (2, 5, 64) and bool(read.isfinite().all())


def test_the_shape_alone_can_be_loaded(tiny_folder: Callable[..., Path]) -> None:
    folders = [str(tiny_folder("llama", name=name)) for name in ("one", "two")]
    shapes = [load(folder, weights=False).model for folder in folders]
    assert all(weight.is_meta for weight in shapes[0].parameters())
    assert weights_fingerprint(shapes[0]) != weights_fingerprint(shapes[1])


# The fingerprint


def test_a_single_changed_weight_changes_the_fingerprint(family: str) -> None:
    model = make_model(family)
    before = weights_fingerprint(model)
    assert weights_fingerprint(make_model(family)) == before
    assert weights_fingerprint(make_model(family, seed=1)) != before
    weight = model.model.layers[2].mlp.down_proj.weight
    with torch.no_grad():
        weight[3, 4] = torch.nextafter(weight[3, 4], torch.tensor(9.0))
    assert weights_fingerprint(model) != before


def test_the_fingerprint_knows_names_shapes_and_dtypes() -> None:
    class One(torch.nn.Module):
        def __init__(self, name: str, weight: torch.Tensor):
            super().__init__()
            self.register_buffer(name, weight)

    zero = torch.zeros(2, 3)
    variants = [
        One("a", zero),
        One("b", zero),
        One("a", zero.T.contiguous()),
        One("a", torch.zeros(2, 3, dtype=torch.int32)),
        One("a", torch.zeros(2, 6, dtype=torch.bfloat16)),
    ]
    fingerprints = [weights_fingerprint(module) for module in variants]  # type: ignore[arg-type]
    assert len(set(fingerprints)) == len(variants)
    strided = One("a", torch.zeros(3, 2).T)
    assert weights_fingerprint(strided) == fingerprints[0]  # type: ignore[arg-type]


def test_a_large_weight_is_read_in_pieces(monkeypatch: pytest.MonkeyPatch) -> None:
    import probes.models

    model = make_model("llama")
    whole = weights_fingerprint(model)
    parts = probes.models._parts
    monkeypatch.setattr(probes.models, "_parts", lambda tensor: parts(tensor, 7))
    assert weights_fingerprint(model) == whole


# Everything that can be wrong with a model


def broken(kind: str, tiny_folder: Callable[..., Path], tmp_path: Path) -> tuple[str, dict]:
    """A model argument that is wrong in one way, and options for it."""
    if kind in ("bert", "t5"):
        small = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2}
        model: PreTrainedModel = (
            BertLMHeadModel(BertConfig(vocab_size=288, intermediate_size=16, **small))
            if kind == "bert"
            else T5ForConditionalGeneration(
                T5Config(vocab_size=288, d_model=16, d_kv=8, d_ff=16, num_layers=1, num_heads=2)
            )
        )
        model.save_pretrained(tmp_path / kind)
        make_tokenizer().save_pretrained(tmp_path / kind)
        return str(tmp_path / kind), {}
    if kind == "small vocabulary":
        return str(tiny_folder("llama", vocab_size=100)), {}
    folder = tiny_folder("llama", name="model")
    weights, config = folder / "model.safetensors", folder / "config.json"
    match kind:
        case "no config":
            config.unlink()
        case "config is no JSON":
            config.write_text("{", encoding="utf-8")
        case "unknown architecture":
            config.write_text(json.dumps({"model_type": "perceptron"}), encoding="utf-8")
        case "no weights":
            weights.unlink()
        case "truncated weights":
            os.truncate(weights, weights.stat().st_size // 2)
        case "weights are noise":
            weights.write_bytes(bytes(range(256)) * 10)
        case "missing layers":
            data = json.loads(config.read_text(encoding="utf-8"))
            config.write_text(json.dumps({**data, "num_hidden_layers": 4}), encoding="utf-8")
        case "other shapes":
            data = json.loads(config.read_text(encoding="utf-8"))
            config.write_text(json.dumps({**data, "intermediate_size": 96}), encoding="utf-8")
        case "no tokenizer":
            (folder / "tokenizer.json").unlink()
            (folder / "tokenizer_config.json").unlink()
        case "revision of a folder":
            return str(folder), {"revision": "main"}
        case "dtype":
            return str(folder), {"dtype": "float31"}
        case "device map":
            return str(folder), {"device_map": "gpu7"}
        case "a file":
            return str(config), {}
        case "broken gguf":
            (folder / "model.gguf").write_bytes(b"GGUF and no more")
            return str(folder / "model.gguf"), {}
        case "no such path":
            return str(tmp_path / "nowhere"), {}
        case "no such gguf":
            return "nowhere.gguf", {}
        case "no such hub id":
            return "nobody-here/no-such-model", {}
        case "no such revision":
            return "nobody-here/no-such-model", {"revision": "v99"}
        case "no hub id":
            return "not a name!", {}
        case "no such miniature":
            return "miniature/gpt5", {}
    return str(folder), {}


@pytest.mark.parametrize(
    ("kind", "words"),
    [
        ("no such path", "there is no such file or folder"),
        ("no such gguf", "there is no such file or folder"),
        ("no such hub id", "nobody-here/no-such-model cannot be loaded"),
        ("no such revision", "nobody-here/no-such-model at revision v99 cannot be loaded"),
        ("no hub id", "not a name! cannot be loaded: Repo id must use"),
        ("no such miniature", r"is no miniature; there are miniature/llama\[-base\]"),
        ("revision of a folder", "--revision main means nothing"),
        ("dtype", "dtype 'float31' is none of: auto, float32, bfloat16, float16"),
        ("device map", "cannot be loaded.*gpu7"),
        ("a file", "neither a model's folder nor a .gguf file"),
        ("broken gguf", "cannot be loaded"),
        ("no config", "has no config.json"),
        ("config is no JSON", "cannot be loaded.*config.json"),
        ("unknown architecture", "cannot be loaded.*perceptron"),
        ("no weights", "cannot be loaded.*model.safetensors"),
        ("truncated weights", "its weights are damaged"),
        ("weights are noise", "its weights are damaged"),
        ("missing layers", "9 weights are missing from the checkpoint.*would be random"),
        ("other shapes", "in the checkpoint|cannot be loaded"),
        ("no tokenizer", "tokenizer"),
        ("small vocabulary", "ids go up to 261, but the model has embeddings for 100"),
        ("bert", "not a decoder-only language model"),
        ("t5", "not a decoder-only language model"),
    ],
)
def test_a_wrong_model_is_told_in_plain_words(
    kind: str, words: str, tiny_folder: Callable[..., Path], tmp_path: Path
) -> None:
    spec, options = broken(kind, tiny_folder, tmp_path)
    with pytest.raises(InputError, match=words) as caught:
        load(spec, **options)
    message = str(caught.value)
    assert "\n" not in message and (spec in message or kind == "dtype")


def test_the_folder_that_is_broken_above_is_whole_otherwise(
    tiny_folder: Callable[..., Path],
) -> None:
    assert load(str(tiny_folder("llama", name="model"))).model.num_parameters() > 0
