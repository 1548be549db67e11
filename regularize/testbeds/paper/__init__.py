"""The papers' own models, data and settings (arXiv 2602.17546), for a GPU with access to the hub.

What is known of them is the table of results, and the released code's settings: HEx-PHI's 300 rows
for 20 epochs, LoRA of rank 64 with alpha 16 and no dropout on all linear maps, 2048 tokens, batches
of 1 accumulated 4 times, 8-bit AdamW at 2e-4 (and 2e-5, 2e-6, 2e-7) with weight decay .01, a
warm-up of 5 steps, then a cosine to zero, seed 3407, bfloat16. What differs here:

- AdamW is in 32 bits; the loss is over the answer tokens of the optimizer step, where the released
  code's is a mean of its four rows' means.
- Neither unsloth's kernels nor its copies of the weights: the publishers' own.

Not known, and so our choice: the probe's training set (AdvBench against Alpaca, read at the last
input token; the released code trains an MLP on other activations), the size of the mixtures, where
the KL is taken from in the text, the threshold of attack success, all of the comparators' settings
and data. No revision of any model is known: `main` is taken. Phi-3.5-mini has no published base
model, so that defences which need one are refused on it. What is trained on and asked: `training`,
`evaluation`.

For a first look: python -m regularize.compare --preset paper --dry-run
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

from probes.errors import InputError
from probes.layer_sweep import SweepConfig
from probes.prompts import Message
from regularize.arms import Run
from regularize.data import Example
from regularize.testbeds import Recipe, Split, Swept, Testbed
from regularize.testbeds.paper import training

if TYPE_CHECKING:
    from probes.models import ChatModel
    from regularize.defences import Need
    from regularize.testbeds.paper.evaluation import Evaluation

BASES = {
    "meta-llama/Llama-3.1-8B-Instruct": "meta-llama/Llama-3.1-8B",
    "meta-llama/Llama-3.2-3B-Instruct": "meta-llama/Llama-3.2-3B",
    "Qwen/Qwen2.5-7B-Instruct": "Qwen/Qwen2.5-7B",
    "Qwen/Qwen2.5-3B-Instruct": "Qwen/Qwen2.5-3B",
}
PROBED = "advbench"
"""What the probe is fitted on; it brings as many of Alpaca's prompts."""
SEED = 3407
"""Of the released code."""


class Paper(Testbed):
    """Five aligned chat models of 3 to 8 billion weights."""

    models = ("microsoft/Phi-3.5-mini-instruct", *BASES)
    recipe = Recipe(
        learning_rate=2e-4, epochs=20, batch_size=1, accumulate=4, lora_rank=64, lora_alpha=16,
        weight_decay=0.01, max_length=2048, warmup_steps=5, new_tokens=256, dtype="bfloat16",
        device_map=None, threads=8,
    )  # fmt: skip
    n = 300
    attack = "hex-phi"
    share = 1.0

    @property
    def experiments(self) -> Mapping[str, Callable[[Run], Iterator[Run]]]:
        """HEx-PHI alone; half of it; few of its rows in Alpaca; other learning rates."""
        from regularize.testbeds.paper.experiments import EXPERIMENTS

        return EXPERIMENTS

    def base(self, model: str) -> str:
        """The pretrained model of the same release.

        Raises:
            InputError: None was published.
        """
        if model not in BASES:
            raise InputError(f"no base model of {model} is known")
        return BASES[model]

    def given(self, model: str) -> dict[Need, str]:
        """All but the base model, where there is none."""
        found: dict[Need, str] = {"safe": f"{self.name}:safe", "harmful": f"{self.name}:harmful"}
        return found if model not in BASES else {"base": self.base(model), **found}

    def training(self, name: str, *, seed: int = 0) -> list[Example]:
        """`hex-phi`, `hex-phi-half`, `alpaca:SHARE`; `safe`, and `harmful`."""
        return training.training(name, seed=seed)

    def anchors(
        self, n: int | None = None, *, kind: str = "", seed: int = 0
    ) -> list[tuple[Message, ...]]:
        """Kinds: ordinary, harmful."""
        return training.anchors(training.N_ANCHORS if n is None else n, kind=kind, seed=seed)

    def evaluate(
        self, chat: ChatModel, *, attack: str, n: int, seed: int, split: Split
    ) -> Evaluation:
        """HEx-PHI, XSTest, GSM8K and Alpaca."""
        from regularize.testbeds.paper.evaluation import evaluate_paper

        return evaluate_paper(chat, attack=attack, n=n, seed=seed, split=split)

    def sweeps(self, model: str, out: Path, probes: Path) -> Mapping[str, Swept]:  # noqa: ARG002
        """One probe a model, on harmful prompts that nothing is evaluated on."""
        from probes.manifest import slug

        sweep = SweepConfig(
            models=(model,),
            train=(PROBED,),
            held_out=("jailbreakbench", "xstest"),
            out=probes,
            cache=probes / "cache",
            dtype=cast(Any, self.recipe.dtype),  # a probe holds for the very weights
            device_map=self.recipe.device_map,
        )
        return {"probe": Swept(sweep, probes / slug(model) / slug(f"{PROBED}+alpaca") / "probe")}
