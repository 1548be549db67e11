"""A frozen probe with a logit for each category: what is risky is what people have labelled so.

The risk is the highest of the categories' probabilities, or that of any of them if they were
independent. With `only`, the other categories have no say.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

from probes.errors import InputError
from regularize.critics import Critic, Risks

if TYPE_CHECKING:
    from probes.models import ChatModel
    from regularize.data import Example


@dataclass(frozen=True)
class CategoriesCritic(Critic):
    """Risk = the probability that the request is of any of the categories."""

    path: str | None = None
    """Folder or hub repository of a frozen probe of categories, such as
    runs/category_probe/MODEL/SET/probe."""
    also: tuple[str, ...] = ()
    """More such probes, which read another position, say, each with the categories that it reads in
    place of the first: FOLDER?category=identity, several with commas between."""
    combine: Literal["max", "noisy-or"] = "max"
    """The highest of the probabilities s_c, or 1 - prod (1 - s_c)."""
    only: tuple[str, ...] = ()
    """Categories that count. Default: all."""
    threshold: float | None = None
    """Probability above which an example is flagged. Default: the probe's own frozen threshold,
    which is of all categories together: of some alone it flags fewer harmless rows. Of several
    probes there is none, and it is one half."""
    allow_mismatch: bool = False
    """Go on although the probe was fitted on other weights or another chat template."""
    token_budget: int = 4096
    """Padded tokens in one forward pass."""

    def assess(self, examples: Sequence[Example], chat: ChatModel) -> Risks:
        """The answer is not read: the request alone tells."""
        import torch
        from scipy.special import expit

        from probes.categories import combined
        from probes.frozen_categories import FrozenCategories, read_by

        if self.threshold is not None and not 0 <= self.threshold <= 1:
            raise InputError(f"--critic.threshold {self.threshold}: a probability is from 0 to 1")
        if self.path is None:
            raise InputError(
                "the critic of categories needs a frozen probe: make one with `python -m "
                f"probes.category_probe --model {chat.name} --train SET` and give its folder with "
                "critic:categories --critic.path FOLDER"
            )
        named = [_parsed(text) for text in self.also]
        probes = [FrozenCategories.from_pretrained(self.path)]
        probes += [FrozenCategories.from_pretrained(path) for path, _ in named]
        taken = [(), *(names for _, names in named)]
        told = read_by([probe.config for probe in probes], taken, self.only)
        read = [
            probe.logits(
                chat.model,
                chat.tokenizer,
                [example.prompt for example in examples],
                token_budget=self.token_budget,
                allow_mismatch=self.allow_mismatch,
            )
            for probe in probes
        ]
        each = torch.stack([read[i][:, j] for i, j in told.values()], dim=1)
        logits = combined(each, self.combine).cpu().numpy()
        s = expit(logits)
        counts = (each > 0).sum(0).tolist()
        said = ", ".join(f"{name} {n}" for name, n in zip(told, counts, strict=True))
        notes = (f"rows more likely than not of a category: {said}",)
        if self.threshold is not None or self.also:
            threshold = 0.5 if self.threshold is None else self.threshold
            return Risks(s, s > threshold, notes=notes)
        frozen = probes[0].config.threshold_of(self.combine)
        return Risks(s, None if frozen is None else logits > frozen, notes=notes)


def _parsed(text: str) -> tuple[str, tuple[str, ...]]:
    """Where a further probe lies, and the categories that it reads."""
    path, _, query = text.partition("?")
    field, _, names = query.partition("=")
    if field != "category" or not all(names.split(",")):
        raise InputError(
            f"--critic.also {text}: say which categories it reads, as in {path}?category=identity"
        )
    return path, tuple(names.split(","))
