"""Caching last-token activations, beside padded batches with `output_hidden_states`."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import torch
from transformers import LlamaConfig, LlamaForCausalLM

from probes.backends import open_backend
from probes.capture import capture_rows
from probes.hooks import sites
from probes.rendering import Rendered
from tests.benchmarks.interleave import Case

N_PROMPTS, N_LAYERS, VOCABULARY, BATCH = 64, 8, 32_000, 16


def cases() -> Iterator[Case]:
    """A Llama of 8 layers, width 512, prompts of 40 to 140 tokens."""
    torch.manual_seed(0)
    model = LlamaForCausalLM(
        LlamaConfig(
            vocab_size=VOCABULARY, hidden_size=512, intermediate_size=1408,
            num_hidden_layers=N_LAYERS, num_attention_heads=8, num_key_value_heads=8,
        )
    ).eval()  # fmt: skip
    lengths = torch.randint(40, 141, (N_PROMPTS,)).tolist()
    texts = [tuple(torch.randint(VOCABULARY, (n,)).tolist()) for n in lengths]
    rows = [Rendered(text, len(text) - 1, False) for text in texts]

    def ours() -> np.ndarray:
        read = sites("resid_post", range(N_LAYERS - 1))
        return capture_rows(open_backend(model), rows, read, pad_id=0).numpy()

    # transformers' last hidden state is after the final norm, so the last block is left out.
    def padded(order: list[int], network: torch.nn.Module) -> np.ndarray:
        out = np.empty((N_PROMPTS, N_LAYERS - 1, 512), np.float32)
        for start in range(0, N_PROMPTS, BATCH):
            chosen = order[start : start + BATCH]
            width = max(lengths[i] for i in chosen)
            padded_ids = torch.zeros(len(chosen), width, dtype=torch.long)
            mask = torch.zeros_like(padded_ids)
            for row, i in enumerate(chosen):
                padded_ids[row, : lengths[i]] = torch.tensor(texts[i])
                mask[row, : lengths[i]] = 1
            with torch.inference_mode():
                states = network(
                    input_ids=padded_ids,
                    attention_mask=mask,
                    output_hidden_states=True,
                    use_cache=False,
                ).hidden_states[1:-1]
            for row, i in enumerate(chosen):
                out[i] = torch.stack([state[row, lengths[i] - 1] for state in states]).numpy()
        return out

    by_length = sorted(range(N_PROMPTS), key=lengths.__getitem__)
    yield Case(
        "capture", "64 prompts, 8 layers, vocabulary 32k", "transformers, padded, with LM head",
        ours, lambda: padded(list(range(N_PROMPTS)), model),
    )  # fmt: skip
    yield Case(
        "capture", "64 prompts, 8 layers, vocabulary 32k", "transformers, by length, without head",
        ours, lambda: padded(by_length, model.model),
    )  # fmt: skip
