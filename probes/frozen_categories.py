"""FrozenCategories: a frozen probe with a logit for each category of harm.

    >>> probe = FrozenCategories.from_pretrained("runs/category_probe/llama/mine/probe")
    >>> probe.logits(model, tokenizer, ["How do I open the vault?"])    # [prompt, category]

Saved, shared, loaded and refused as `FrozenProbe` is, whose code it is but for the shapes.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn

from probes.categories import Combine, Heads, any_of, combined
from probes.errors import InputError
from probes.frozen import FrozenProbe
from probes.manifest import Manifest, json_hash
from probes.metrics import operating_point, threshold_in_gap
from probes.prompts import PromptSet
from probes.provenance import ProbeConfig


@dataclass(frozen=True)
class CategoriesConfig(ProbeConfig):
    """Where a probe of categories comes from and what it may be used on.

    `threshold` is that of the highest logit of any category, `train_hash` covers the categories
    too, `auroc` is of the highest logit, and C is None: each category has its own.
    """

    categories: tuple[str, ...] = ()
    """Their names, in the order of the logits."""
    Cs: tuple[float, ...] = ()
    """Of each category."""
    aurocs: tuple[tuple[float, float, float], ...] = ()
    """Of each category, one against all the rest, on unseen folds: estimate and 95 % interval."""
    threshold_noisy_or: float | None = None
    """As `threshold`, of the log-odds of the noisy-or."""

    def __post_init__(self) -> None:
        super().__post_init__()
        for name in ("categories", "Cs"):
            object.__setattr__(self, name, tuple(getattr(self, name)))
        object.__setattr__(self, "aurocs", tuple(tuple(one) for one in self.aurocs))
        if not self.categories:
            raise ValueError("it has no categories: this is a probe of one logit")

    def threshold_of(self, how: Combine) -> float | None:
        """The threshold of the combined log-odds."""
        return self.threshold if how == "max" else self.threshold_noisy_or

    @property
    def card(self) -> str:
        """The README that is saved beside the probe."""
        rows = "\n".join(
            f"| {name} | {auroc[0]:.3f} [{auroc[1]:.3f}, {auroc[2]:.3f}] |"
            for name, auroc in zip(self.categories, self.aurocs, strict=True)
        )
        return f"""---
library_name: activation-critic
base_model: {self.base_model}
tags: [linear-probe, activation-critic]
---
# Linear probes of categories of harm in {self.base_model}

Reads `{self.hook_point}` at position {self.position} of layer {self.layers[0]} and gives the
log-odds of each category, one against all the rest.

    from probes.frozen_categories import FrozenCategories
    FrozenCategories.from_pretrained("PATH").logits(model, tokenizer, ["How do I ...?"])

Fitted on {self.train_set} (hash {self.train_hash[:12]}). AUROC on folds that were not trained on:

| category | AUROC [95 % interval] |
| --- | --- |
{rows}

It holds for these weights, this chat template and prompts like those it was fitted on, and knows no
other category than these.
"""


class FrozenCategories(FrozenProbe):
    """logit_c = sum_l <w_cl, a_l> + b_c, in buffers: nothing here is trained."""

    config: CategoriesConfig
    weight: Float[Tensor, "category layer d_model"]
    bias: Float[Tensor, "category"]

    def __init__(self, config: CategoriesConfig) -> None:
        nn.Module.__init__(self)
        self.config = config
        n = len(config.categories)
        self.register_buffer("weight", torch.zeros(n, len(config.layers), config.d_model))
        self.register_buffer("bias", torch.zeros(n))

    @classmethod
    def joined(
        cls, heads: Heads, manifest: Manifest, train: PromptSet, *, fpr: float = 0.01
    ) -> "FrozenCategories":
        """Freeze the probes of a layer.

        Args:
            heads: Fitted on all rows.
            manifest: Of the activations that they were fitted on.
            train: The prompts.
            fpr: Highest false-positive rate that the thresholds may have, over all categories.
        """
        y = any_of(train)
        logits = torch.from_numpy(heads.out_of_fold)
        highest, noisy = (combined(logits, how).numpy() for how in ("max", "noisy-or"))
        thresholds = [threshold_in_gap(y, scores, fpr) for scores in (highest, noisy)]
        known = thresholds[0] == thresholds[0]
        realised = operating_point(y, highest, thresholds[0]).fpr.estimate
        probe = cls(
            CategoriesConfig(
                base_model=manifest.model,
                revision=manifest.revision,
                weights=manifest.weights,
                template=manifest.template,
                hook_point=manifest.hook_point,
                position=manifest.position,
                max_length=manifest.max_length,
                n_layers=manifest.n_layers,
                d_model=manifest.d_model,
                readout="layer",
                layers=(heads.layer,),
                C=None,
                train_set=train.name,
                train_hash=json_hash([train.hash, [list(p.categories) for p in train.prompts]]),
                auroc=None,
                threshold_fpr=fpr,
                threshold=thresholds[0] if known else None,
                realised_fpr=realised if known else None,
                categories=train.categories,
                Cs=tuple(float(one.C or 0) for one in heads.probes),
                aurocs=tuple((one.estimate, one.lo, one.hi) for one in heads.aurocs),
                threshold_noisy_or=thresholds[1] if known else None,
            )
        )
        probe.weight.copy_(torch.stack([one.weight for one in heads.probes]))
        probe.bias.copy_(torch.tensor([one.bias for one in heads.probes]))
        return probe.eval()

    def forward(
        self, activations: Float[Tensor, "*batch layer d_model"]
    ) -> Float[Tensor, "*batch category"]:
        """Log-odds of each category (float64) from the activations of `config.layers`."""
        weight = self.weight.double()
        return torch.einsum("...ld,cld->...c", activations.double(), weight) + self.bias.double()

    @classmethod
    def of(cls, *_: Any, **__: Any) -> "FrozenCategories":
        """Not for categories: `joined` freezes them."""
        raise TypeError("FrozenCategories.joined freezes probes of categories")


def read_by(
    configs: Sequence[CategoriesConfig], taken: Sequence[Sequence[str]], only: Sequence[str] = ()
) -> dict[str, tuple[int, int]]:
    """For each category the probe that reads it, and its place in that probe's logits.

    Args:
        configs: Of probes of the same model.
        taken: The categories that each of them reads; a later probe takes them from an earlier one.
            All that it has where none is named.
        only: The categories wanted; all of them where none is named.

    Raises:
        InputError: There is none of a name.
    """
    found: dict[str, tuple[int, int]] = {}
    for i, (config, names) in enumerate(zip(configs, taken, strict=True)):
        _refuse(names, config.categories)
        found |= {name: (i, config.categories.index(name)) for name in names or config.categories}
    _refuse(only, tuple(found))
    return {name: found[name] for name in only or found}


def _refuse(names: Sequence[str], known: Sequence[str]) -> None:
    if unknown := [name for name in names if name not in known]:
        raise InputError(f"there is no category {', '.join(unknown)}, only {', '.join(known)}")
