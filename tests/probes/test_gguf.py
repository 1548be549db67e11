"""A GGUF file loads by its path, like any model."""

from pathlib import Path

import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM

from probes.backends import open_backend
from probes.capture import capture
from probes.errors import InputError
from probes.hooks import sites
from probes.models import load


def write_gguf(path: Path) -> LlamaForCausalLM:
    """A tiny Llama as a GGUF file, written by the gguf package itself."""
    gguf = pytest.importorskip("gguf", reason="the gguf package is not installed")
    torch.manual_seed(0)
    model = LlamaForCausalLM(
        LlamaConfig(
            vocab_size=259,
            hidden_size=64,
            intermediate_size=64,
            num_hidden_layers=2,
            num_attention_heads=1,
            num_key_value_heads=1,
            max_position_embeddings=128,
            tie_word_embeddings=False,
            initializer_range=0.2,
        )
    ).eval()
    writer = gguf.GGUFWriter(path, "llama")
    writer.add_context_length(128)
    writer.add_embedding_length(64)
    writer.add_block_count(2)
    writer.add_feed_forward_length(64)
    writer.add_head_count(1)
    writer.add_head_count_kv(1)
    writer.add_rope_dimension_count(64)
    writer.add_layer_norm_rms_eps(model.config.rms_norm_eps)
    writer.add_vocab_size(259)
    writer.add_tokenizer_model("llama")
    writer.add_token_list(["<unk>", "<s>", "</s>", *(f"<0x{byte:02X}>" for byte in range(256))])
    writer.add_token_scores([0.0] * 259)
    writer.add_token_types([2, 3, 3, *[6] * 256])
    writer.add_bos_token_id(1)
    writer.add_eos_token_id(2)
    names = gguf.get_tensor_name_map(gguf.MODEL_ARCH.LLAMA, 2)
    for name, weight in model.state_dict().items():
        stem, _, suffix = name.rpartition(".")
        array = weight
        if "q_proj" in name or "k_proj" in name:  # llama.cpp's order of rotary pairs
            array = weight.reshape(1, 2, 32, 64).swapaxes(1, 2).reshape(64, 64)
        writer.add_tensor(f"{names.get_name(stem)}.{suffix}", array.contiguous().numpy())
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return model


def test_a_gguf_file_is_a_model_like_any_other(tmp_path: Path) -> None:
    model = write_gguf(tmp_path / "tiny.gguf")
    chat = load(str(tmp_path / "tiny.gguf"), chat_template="plain")
    ids = torch.tensor([[1, 70, 90, 101]])
    wanted = sites("resid_post", range(2))
    read, reference = (
        open_backend(m).capture(ids, torch.ones_like(ids), torch.tensor([3]), wanted)
        for m in (chat.model, model)
    )
    torch.testing.assert_close(read, reference, rtol=0, atol=1e-4)
    assert capture(chat.model, chat.tokenizer, ["hi"]).shape == (1, 2, 64)


def test_gguf_without_its_package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import transformers.modeling_gguf_pytorch_utils as reader

    write_gguf(tmp_path / "tiny.gguf")
    monkeypatch.setattr(reader, "is_gguf_available", lambda *_: False)
    with pytest.raises(InputError, match=r"tiny\.gguf cannot be loaded.*pip install gguf"):
        load(str(tmp_path / "tiny.gguf"))
