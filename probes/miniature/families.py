"""The three architectures: configuration, special tokens and chat template of each.

The templates keep what is peculiar in the models they stand for: Llama-3's writes BOS itself,
Qwen2.5's puts in a system message where there is none, Phi-3.5's ends in a newline.
"""

from collections.abc import Callable
from typing import NamedTuple

from transformers import (
    LlamaConfig,
    LlamaForCausalLM,
    Phi3Config,
    Phi3ForCausalLM,
    PreTrainedConfig,
    PreTrainedModel,
    Qwen2Config,
    Qwen2ForCausalLM,
)

from probes.miniature import Family


class Architecture(NamedTuple):
    """What makes a family."""

    config: Callable[..., PreTrainedConfig]
    model: type[PreTrainedModel]
    kv_heads: int
    intermediate: int
    special_tokens: tuple[str, ...]
    """The first one pads."""
    bos: str | None
    eos: str
    """Ends a turn."""
    template: str


ARCHITECTURES: dict[Family, Architecture] = {
    "llama": Architecture(
        LlamaConfig,
        LlamaForCausalLM,
        kv_heads=2,
        intermediate=224,
        special_tokens=(
            "<|pad|>",
            "<|begin_of_text|>",
            "<|start_header_id|>",
            "<|end_header_id|>",
            "<|eot_id|>",
        ),
        bos="<|begin_of_text|>",
        eos="<|eot_id|>",
        template=(
            "{{- bos_token }}"
            "{%- for message in messages %}"
            "{{- '<|start_header_id|>' + message['role'] + '<|end_header_id|>\\n\\n' }}"
            "{{- message['content'] | trim + '<|eot_id|>' }}"
            "{%- endfor %}"
            "{%- if add_generation_prompt %}"
            "{{- '<|start_header_id|>assistant<|end_header_id|>\\n\\n' }}"
            "{%- endif %}"
        ),
    ),
    "phi3": Architecture(
        Phi3Config,
        Phi3ForCausalLM,
        kv_heads=4,
        intermediate=192,
        special_tokens=(
            "<|endoftext|>",
            "<|system|>",
            "<|user|>",
            "<|assistant|>",
            "<|end|>",
        ),
        bos=None,
        eos="<|end|>",
        template=(
            "{%- for message in messages %}"
            "{{- '<|' + message['role'] + '|>\\n' + message['content'] + '<|end|>\\n' }}"
            "{%- endfor %}"
            "{%- if add_generation_prompt %}{{- '<|assistant|>\\n' }}{%- endif %}"
        ),
    ),
    "qwen2": Architecture(
        Qwen2Config,
        Qwen2ForCausalLM,
        kv_heads=2,
        intermediate=224,
        special_tokens=("<|endoftext|>", "<|im_start|>", "<|im_end|>"),
        bos=None,
        eos="<|im_end|>",
        template=(
            "{%- if messages[0]['role'] != 'system' %}"
            "{{- '<|im_start|>system\\nYou serve the castle.<|im_end|>\\n' }}"
            "{%- endif %}"
            "{%- for message in messages %}"
            "{{- '<|im_start|>' + message['role'] + '\\n' + message['content'] + '<|im_end|>\\n' }}"
            "{%- endfor %}"
            "{%- if add_generation_prompt %}{{- '<|im_start|>assistant\\n' }}{%- endif %}"
        ),
    ),
}

N_LAYERS = 6
D_MODEL = 96
N_HEADS = 4
CONTEXT = 256
"""Tokens of prompt and answer together."""
ROPE_THETA = 100.0
"""Fit for sentences: at the usual 10,000 most of a small head would not turn within one."""
INIT = 0.02
EMBEDDING_INIT = 0.08
"""Standard deviation of the tied embeddings; at .02 so narrow a model learns to copy words late."""


def configuration(family: Family, *, vocab_size: int, ids: dict[str, int]) -> PreTrainedConfig:
    """The model configuration of a family.

    Args:
        family: which architecture.
        vocab_size: tokens, special ones included.
        ids: the token ids of every special token.
    """
    arch = ARCHITECTURES[family]
    return arch.config(
        vocab_size=vocab_size,
        hidden_size=D_MODEL,
        intermediate_size=arch.intermediate,
        num_hidden_layers=N_LAYERS,
        num_attention_heads=N_HEADS,
        num_key_value_heads=arch.kv_heads,
        max_position_embeddings=CONTEXT,
        original_max_position_embeddings=CONTEXT,
        tie_word_embeddings=True,
        rope_parameters={"rope_type": "default", "rope_theta": ROPE_THETA},
        initializer_range=INIT,
        bos_token_id=ids[arch.bos] if arch.bos else None,
        eos_token_id=ids[arch.eos],
        pad_token_id=ids[arch.special_tokens[0]],
    )
