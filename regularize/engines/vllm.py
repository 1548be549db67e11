"""vLLM (Kwon et al. 2023, arXiv 2309.06180): paged attention and batches that never wait, on GPUs.

An optional extra. The model is loaded by vLLM, and nothing of it lies in this process but its shape
and tokenizer. Greedy answers are those of transformers up to rounding; drawn ones have the same
distribution, by another generator. Tested against a stand-in with the calls that are made here.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

from probes.errors import InputError
from probes.prompts import Message
from regularize.engines import Asking, Engine, Loading

if TYPE_CHECKING:
    from regularize.generation import Decided

RANKS = (8, 16, 32, 64, 128, 256, 320, 512)
"""What `max_lora_rank` may be."""


@dataclass
class Vllm(Engine):
    """Answers by `vllm.LLM.generate`."""

    loading: Loading
    adapter: Path | None = None
    rank: int = RANKS[0]
    """Room for an adapter's."""
    running: Any = field(default=None, repr=False)
    """The `vllm.LLM`, from the first question on: only then it is known how long prompts are."""

    @classmethod
    def load(cls, loading: Loading) -> Self:
        """The shape and the tokenizer; the weights follow with the first question."""
        _vllm()
        if loading.device_map is not None:
            raise InputError(
                f"--device-map {loading.device_map} is transformers'; with --engine vllm give the "
                "number of GPUs with --vllm-gpus"
            )
        if loading.model.endswith(".gguf"):
            raise InputError(f"--engine vllm takes no .gguf file such as {loading.model}")

        from transformers import GenerationConfig

        from probes import models

        chat = models.load(
            loading.model,
            revision=loading.revision,
            dtype=loading.dtype,
            chat_template=loading.chat_template,
            weights=False,
        )
        with suppress(OSError):  # there may be no such file
            # It says which tokens end a turn; a shape alone does not know all of them.
            chat.model.generation_config = GenerationConfig.from_pretrained(
                str(chat.model.config.name_or_path), revision=loading.revision or "main"
            )
        return cls(chat, loading)

    def adapt(self, adapter: Path, *, allow_other_base: bool = False) -> None:
        """See `Engine.adapt`: only plain LoRA on linear maps."""
        from regularize.adapters import describe

        config = describe(self.chat, adapter, allow_other_base=allow_other_base)
        if config.get("peft_type") != "LORA" or config.get("modules_to_save"):
            raise InputError(
                f"{adapter}: vLLM runs plain LoRA adapters, and no other weights beside them; "
                "leave --engine vllm out"
            )
        if config["r"] > RANKS[-1]:
            raise InputError(f"{adapter}: vLLM takes ranks up to {RANKS[-1]}, not {config['r']}")
        self.rank = next(rank for rank in RANKS if rank >= config["r"])
        self.adapter = adapter

    def answers(
        self,
        prompts: Sequence[Sequence[Message]],
        asking: Asking,
        *,
        adapted: bool,
        decided: Decided | None = None,
    ) -> list[str]:
        """See `Engine.answers`. It writes every answer to its end."""
        if decided is not None:
            raise InputError("--stop-early needs --engine transformers: vLLM is not asked midway")
        vllm = _vllm()
        from probes.greedy import stops_of, until
        from regularize.generation import TOP_P, check_options, rendered, text_of

        check_options(asking.max_new_tokens, asking.batch_tokens, asking.temperature, TOP_P)
        rows, new = rendered(self.chat, prompts, asking.max_new_tokens)
        if not rows:
            return []
        stops = stops_of(self.chat)
        if self.running is None:
            self.running = self._start(vllm, max(len(row.ids) for row in rows) + new)
        each = [
            vllm.SamplingParams(
                temperature=asking.temperature,
                top_p=TOP_P if asking.temperature else 1.0,
                max_tokens=new,
                stop_token_ids=stops,
                # A prompt's draws are its own, whatever is answered beside it.
                seed=asking.seed * len(rows) + place if asking.temperature else None,
                detokenize=False,
            )
            for place in range(len(rows))
        ]
        done = self.running.generate(
            [{"prompt_token_ids": list(row.ids)} for row in rows],
            sampling_params=each,
            lora_request=self._request() if adapted else None,
            use_tqdm=asking.progress,
        )
        return [
            text_of(self.chat.tokenizer, until(list(one.outputs[0].token_ids), stops))
            for one in done
        ]

    def _start(self, vllm: Any, tokens: int) -> Any:
        """Load the weights; `tokens` are those of the longest prompt and its answer."""
        config = self.chat.model.config
        kind = self.loading.dtype
        if kind == "auto":
            # Of float32 vLLM's own auto would make float16.
            kind = str(config.get_text_config().dtype or "auto").removeprefix("torch.")
        lora = {} if self.adapter is None else {"enable_lora": True, "max_lora_rank": self.rank}
        try:
            return vllm.LLM(
                model=config.name_or_path,
                revision=self.loading.revision,
                dtype=kind,
                max_model_len=tokens,
                tensor_parallel_size=self.loading.gpus,
                gpu_memory_utilization=self.loading.memory,
                generation_config="vllm",  # no sampling or penalties of the checkpoint's own
                **lora,
            )
        except (ValueError, RuntimeError, NotImplementedError) as error:
            reason = next(iter(str(error).splitlines()), type(error).__name__)
            raise InputError(
                f"vLLM cannot run {self.chat.name}: {reason}; leave --engine vllm out, or give "
                "another --vllm-memory"
            ) from error

    def _request(self) -> Any:
        from vllm.lora.request import LoRARequest

        assert self.adapter is not None, "there is no adapter"
        return LoRARequest(self.adapter.name, 1, str(self.adapter.resolve()))


def _vllm() -> Any:
    try:
        import vllm
    except ImportError as error:
        raise InputError(
            "--engine vllm: vLLM is not installed; pip install 'activation-critic[vllm]' on a "
            "machine with a GPU, or leave --engine out"
        ) from error
    return vllm
