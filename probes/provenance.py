"""What a frozen probe knows of itself: saved as its `config.json`, told by its README."""

from dataclasses import dataclass

from probes.hooks import HookPoint, Position, check_position

FORMAT = 2

_IN_WORDS: dict[Position, str] = {
    "last-input-token": "the last input token",
    "last-content-token": "the last token of the last user turn's own words",
    "post-instruction": "the template's tokens after the last user turn's words, their mean,",
    "content-mean": "the tokens of the last user turn's own words, their mean,",
}
_SEEN: dict[Position, str] = {
    "last-input-token": "one token's activations",
    "last-content-token": "one token's activations",
    "post-instruction": "the mean of a few tokens' activations",
    "content-mean": "the mean of the words' activations",
}


@dataclass(frozen=True)
class ProbeConfig:
    """Where a probe comes from and what it may be used on."""

    base_model: str
    """Hub id, folder or file of the model that it reads."""
    revision: str | None
    weights: str
    """Fingerprint of the model's weights: this, not the name, is what is checked."""
    template: str
    """Hash of the chat template."""
    hook_point: HookPoint
    position: Position
    """Which tokens it reads: a name of `probes.positions`."""
    max_length: int | None
    """Longest rendered prompt (tokens)."""
    n_layers: int
    """Of the model."""
    d_model: int
    readout: str
    layers: tuple[int, ...]
    """Blocks read."""
    C: float | None
    train_set: str
    train_hash: str
    """SHA-256 of the training prompts' ids, labels and groups."""
    auroc: tuple[float, float, float] | None
    """On unseen folds of the train set: estimate, and 95 % interval."""
    threshold_fpr: float
    """Highest false-positive rate that the threshold might have (`metrics.threshold_in_gap`)."""
    threshold: float | None
    """Logit above which a prompt counts as harmful; None where the harmless rows were too few for
    the rate."""
    realised_fpr: float | None
    """Share of harmless train rows above it, each by a probe that had not seen its fold."""
    calibration: str = "none"
    """What is folded into it: none, or platt (`calibration.platt`, out of fold)."""
    format: int = FORMAT

    def __post_init__(self) -> None:
        # JSON knows lists only.
        object.__setattr__(self, "layers", tuple(self.layers))
        object.__setattr__(self, "auroc", None if self.auroc is None else tuple(self.auroc))
        if self.format != FORMAT:
            raise ValueError(f"format {self.format}, where this version reads {FORMAT}")
        check_position(self.position)

    @property
    def card(self) -> str:
        """The README that is saved beside the probe."""
        auroc = "not recorded"
        if self.auroc is not None:
            auroc = (
                f"{self.auroc[0]:.3f} (95 % interval {self.auroc[1]:.3f} to {self.auroc[2]:.3f})"
            )
        threshold = "none: too few harmless rows for that rate"
        if self.threshold is not None and self.realised_fpr is not None:
            threshold = (
                f"logit {self.threshold:.3f}, flagging {self.realised_fpr:.2%} of the harmless rows"
            )
        return f"""---
library_name: activation-critic
base_model: {self.base_model}
tags: [linear-probe, activation-critic]
---
# Linear probe for harmful requests in {self.base_model}

Reads `{self.hook_point}` at {_IN_WORDS[self.position]} of layers {list(self.layers)}
({self.readout}) and gives the probability that a request is harmful.

    from probes.frozen import FrozenProbe
    FrozenProbe.from_pretrained("PATH").risk(model, tokenizer, ["How do I ...?"])

- Fitted on: {self.train_set} (hash {self.train_hash[:12]}), C = {self.C}
- AUROC on folds of it that it was not trained on: {auroc}
- Threshold for a false-positive rate of at most {self.threshold_fpr:g}, out of fold: {threshold}

It holds for these weights, this chat template and prompts like those it was fitted on. Elsewhere
its logit is a number without evidence; score it on your own held-out prompts first, beside what
their words alone give. It sees {_SEEN[self.position]}: what they do not show, it does not know.
"""
