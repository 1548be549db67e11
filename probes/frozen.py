"""FrozenProbe: a fitted probe to keep, share and put to use, with all that it holds for.

    >>> probe = FrozenProbe.from_pretrained("runs/layer_sweep/probes/llama")
    >>> probe.risk(model, tokenizer, ["How do I open the vault?"])   # probability of harm [prompt]

Saved as `config.json`, `model.safetensors` and a README; shared by `push_to_hub`. It knows the
weights, the chat template, the hook point and the position that it was fitted on, and refuses
others: the logit of another model's activations is a number, but no evidence.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any, TypeVar

import torch
from huggingface_hub import ModelCard, PyTorchModelHubMixin, hf_hub_download
from huggingface_hub.constants import SAFETENSORS_SINGLE_FILE
from huggingface_hub.errors import HfHubHTTPError, HFValidationError
from jaxtyping import Float
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn
from transformers import PreTrainedTokenizerBase

from probes.backends import library
from probes.cache import ActivationCache
from probes.capture import capture
from probes.errors import InputError
from probes.manifest import Manifest
from probes.metrics import Interval, operating_point, threshold_in_gap
from probes.models import template_hash, weights_fingerprint
from probes.probe import CrossValidated, LinearReadout
from probes.prompts import Message, PromptSet
from probes.provenance import ProbeConfig

Probe = TypeVar("Probe", bound="FrozenProbe")


class FrozenProbe(nn.Module, PyTorchModelHubMixin, library_name="activation-critic"):
    """logit = sum_l <w_l, a_l> + b, in buffers: nothing here is trained."""

    weight: Float[Tensor, "layer d_model"]
    bias: Float[Tensor, ""]

    def __init__(self, config: ProbeConfig) -> None:
        super().__init__()
        self.config = config
        self.register_buffer("weight", torch.zeros(len(config.layers), config.d_model))
        self.register_buffer("bias", torch.zeros(()))

    @classmethod
    def of(
        cls,
        readout: LinearReadout,
        manifest: Manifest,
        train: PromptSet,
        out_of_fold: CrossValidated,
        *,
        auroc: Interval | None = None,
        fpr: float = 0.01,
        calibration: str = "none",
    ) -> "FrozenProbe":
        """Freeze a readout.

        Args:
            readout: Fitted on all rows.
            manifest: Of the activations that it was fitted on.
            train: The prompts.
            out_of_fold: Their logits by probes that had not seen them, for the threshold.
            auroc: In-distribution, for the record.
            fpr: Highest false-positive rate that the threshold may have.
            calibration: What has been folded into it, for the record.
        """
        threshold = threshold_in_gap(train.labels, out_of_fold.logits, fpr)
        known = threshold == threshold
        realised = operating_point(train.labels, out_of_fold.logits, threshold).fpr.estimate
        probe = cls(
            ProbeConfig(
                base_model=manifest.model,
                revision=manifest.revision,
                weights=manifest.weights,
                template=manifest.template,
                hook_point=manifest.hook_point,
                position=manifest.position,
                max_length=manifest.max_length,
                n_layers=manifest.n_layers,
                d_model=manifest.d_model,
                readout=readout.readout,
                layers=readout.layers,
                C=readout.C,
                train_set=train.name,
                train_hash=train.hash,
                auroc=None if auroc is None else (auroc.estimate, auroc.lo, auroc.hi),
                threshold_fpr=fpr,
                threshold=threshold if known else None,
                realised_fpr=realised if known else None,
                calibration=calibration,
            )
        )
        probe.weight.copy_(readout.weight)
        probe.bias.fill_(readout.bias)
        return probe.eval()

    def forward(
        self, activations: Float[Tensor, "*batch layer d_model"]
    ) -> Float[Tensor, "*batch"]:
        """Log-odds of harm (float64) from the activations of `config.layers`, in their order."""
        products = activations.double() * self.weight.double()
        return products.sum((-2, -1)) + self.bias.double()

    def risk(
        self,
        model: object,
        tokenizer: PreTrainedTokenizerBase,
        prompts: Sequence[str | Sequence[Message]],
        *,
        token_budget: int = 4096,
        allow_mismatch: bool = False,
    ) -> Float[Tensor, "prompt *category"]:
        """Probability of harm of each prompt (float32, on the probe's device).

        Arguments and errors are those of `logits`.
        """
        logits = self.logits(
            model, tokenizer, prompts, token_budget=token_budget, allow_mismatch=allow_mismatch
        )
        return torch.sigmoid(logits).float()

    def logits(
        self,
        model: object,
        tokenizer: PreTrainedTokenizerBase,
        prompts: Sequence[str | Sequence[Message]],
        *,
        token_budget: int = 4096,
        allow_mismatch: bool = False,
    ) -> Float[Tensor, "prompt *category"]:
        """Log-odds of harm of each prompt (float64), to be held to `config.threshold`.

        Args:
            model: A transformers model or an nnsight `LanguageModel`; a `TransformerBridge` renames
                its weights, so that they cannot be compared, and needs `allow_mismatch`.
            tokenizer: The model's own, with the chat template that the probe was fitted with.
            prompts: Texts of one user turn, or whole chats.
            token_budget: Padded tokens in one forward pass.
            allow_mismatch: Go on with another model of the same shape, or another template.

        Raises:
            InputError: The model or the template is another than the probe was fitted on, or a
                prompt lacks the position that it reads.
        """
        if not allow_mismatch:
            self.check(model, tokenizer)
        activations = capture(
            model,
            tokenizer,
            prompts,
            hook_point=self.config.hook_point,
            position=self.config.position,
            layers=self.config.layers,
            max_length=self.config.max_length,
            token_budget=token_budget,
        )
        if activations.shape[-1] != self.config.d_model:
            raise InputError(
                f"the probe reads activations of width {self.config.d_model}, but this model's are "
                f"of width {activations.shape[-1]}"
            )
        return self(activations.to(self.weight.device))

    def check(self, model: object, tokenizer: PreTrainedTokenizerBase) -> None:
        """Refuse what the probe was not fitted on.

        Raises:
            InputError: The model or the template is another.
        """
        self._refuse(
            [
                ("weights", self.config.weights, _fingerprint(model)),
                ("chat template", self.config.template, template_hash(tokenizer)),
            ]
        )

    def risk_of(
        self, cache: ActivationCache, *, allow_mismatch: bool = False
    ) -> Float[Tensor, "prompt *category"]:
        """Probability of harm of each cached prompt, shard by shard, without the model.

        Raises:
            InputError: The cache is of another model, template, hook point or position.
        """
        theirs = cache.manifest
        checks = [
            ("weights", self.config.weights, theirs.weights),
            ("chat template", self.config.template, theirs.template),
            ("hook point", self.config.hook_point, theirs.hook_point),
            ("position", self.config.position, theirs.position),
        ]
        self._refuse([] if allow_mismatch else checks)
        shape = (self.config.n_layers, self.config.d_model)
        if shape != (cache.n_layers, cache.d_model):
            raise InputError(
                f"the probe reads {shape[0]} layers of width {shape[1]}, but the cache holds "
                f"{cache.n_layers} of width {cache.d_model}"
            )
        logits = [
            self(block.to(self.weight.device)) for _, block in cache.blocks(self.config.layers)
        ]
        return torch.sigmoid(torch.cat(logits)).float()

    def _refuse(self, checks: Sequence[tuple[str, str, str]]) -> None:
        different = [
            f"{what} {_short(theirs)} instead of {_short(ours)}"
            for what, ours, theirs in checks
            if ours != theirs
        ]
        if different:
            raise InputError(
                f"this probe was fitted on {self.config.base_model} and does not hold here: "
                f"{'; '.join(different)}. Fit one on this model, or go on nevertheless with "
                "allow_mismatch=True (--critic.allow-mismatch)"
            )

    @classmethod
    def from_pretrained(cls: type[Probe], source: str | Path, **options: Any) -> Probe:  # type: ignore[override]
        """Load from a folder or from the hub (`revision`, `token`, ... as usual there).

        Raises:
            InputError: There is no probe there, it is damaged, or of another format.
        """
        try:
            return super().from_pretrained(source, **options)
        except SafetensorError as error:
            raise InputError(f"{source}: {SAFETENSORS_SINGLE_FILE} is damaged ({error})") from error
        except (HfHubHTTPError, HFValidationError, OSError) as error:
            raise InputError(
                f"{source}: no frozen probe can be read there (a folder or hub repository with "
                f"config.json and {SAFETENSORS_SINGLE_FILE}): {error}"
            ) from error
        except (TypeError, ValueError, RuntimeError, AttributeError) as error:
            raise InputError(f"{source} does not hold a whole frozen probe: {error}") from error

    @classmethod
    def _from_pretrained(  # type: ignore[override]
        cls: type[Probe],
        *,
        model_id: str,
        config: ProbeConfig,
        map_location: str = "cpu",
        **hub: Any,
    ) -> Probe:
        # The mixin's own prints, tolerates missing weights and falls back on pickles.
        folder = Path(model_id)
        weights = folder / SAFETENSORS_SINGLE_FILE
        if not folder.is_dir():
            weights = Path(hf_hub_download(model_id, SAFETENSORS_SINGLE_FILE, **hub))
        probe = cls(config)
        probe.load_state_dict(load_file(weights))
        return probe.to(map_location).eval()

    def _save_pretrained(self, save_directory: Path) -> None:
        super()._save_pretrained(save_directory)
        # The mixin keeps an older README, which would speak of another probe.
        self.generate_model_card().save(save_directory / "README.md")

    def generate_model_card(self, *args: Any, **kwargs: Any) -> ModelCard:  # noqa: ARG002
        """The README that is saved beside the probe."""
        return ModelCard(self.config.card)


def _short(value: str) -> str:
    """The beginning of a hash; a name as it is."""
    return value[:16] if len(value) == 64 else value


def _fingerprint(model: Any) -> str:
    """Of the weights of a transformers model, or of the one that nnsight has wrapped."""
    held = library(model)
    if held == "transformer-lens":
        raise InputError(
            "a TransformerBridge renames its weights, so that they cannot be compared with the "
            "probe's model; give the transformers model, or allow_mismatch=True"
        )
    return weights_fingerprint(model._module if held == "nnsight" else model)
