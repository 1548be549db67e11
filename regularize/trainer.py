"""RegularizedTrainer: transformers' Trainer with L = alpha NLL + beta KL(pi_ref || pi_theta).

    >>> RegularizedTrainer(
    ...     model=model, args=TrainingArguments("runs/ft"), train_dataset=rows,
    ...     processing_class=tokenizer, peft_config=LoraConfig(...),
    ...     critic=ProbeCritic("runs/layer_sweep/MODEL/SET/probe"), defence=AdaptiveKL(),
    ... ).train()

Risk and reference are constants of the data, found before the first step (`prepare`, `reference`;
a critic that looks at the model in training too changes its risks on the way, `live`), so that the
loop reads as the paper's algorithm (arXiv 2602.17546): s, then alpha and beta, then the loss. NLL
and KL share one denominator, the answer tokens of the whole optimizer step, so that neither
gradient accumulation nor the number of processes changes it.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any, cast

import torch
from accelerate.utils import broadcast  # type: ignore[import-untyped]
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from transformers import PreTrainedModel, PreTrainedTokenizerBase, TrainingArguments

from probes.blocks import evaluating
from probes.capture import pad_id
from probes.errors import InputError
from regularize import sharding
from regularize.collate import collate
from regularize.critics import Critic, Risks
from regularize.data import Example, encode, examples
from regularize.defences import At, Defence, Given, Weights, check_given
from regularize.defences.adaptive_kl import AdaptiveKL
from regularize.live import Reassessing
from regularize.logged import Sums, of_steps
from regularize.losses import regularized
from regularize.model import (
    Capture,
    adapter_off,
    answers_of,
    base_of,
    check_logits,
    head_of,
    refuse_prompt_learning,
)
from regularize.passes import constants
from regularize.policy import adapted, chat_of, place
from regularize.prepare import Prepared, plain, prepare
from regularize.reference import (
    AdapterOff,
    Batch,
    Cached,
    Copied,
    Kind,
    Reference,
    choose,
    refuse_other,
    same_head,
)
from regularize.sharded import ShardedTrainer
from regularize.turns import Turns

STATE = "risk_state.json"
STEPS = "defence_state.safetensors"


class RegularizedTrainer(ShardedTrainer):
    """A Trainer that learns what is harmless and holds what is risky to the reference policy."""

    def __init__(
        self,
        model: str | PreTrainedModel | nn.Module,
        args: TrainingArguments,
        train_dataset: Prepared | Sequence[Example] | Sequence[Mapping[str, object]],
        *,
        processing_class: PreTrainedTokenizerBase | None = None,
        defence: Defence | None = None,
        critic: Critic | None = None,
        anchors: Sequence[Example] = (),
        base: PreTrainedModel | None = None,
        safe: Sequence[Example] = (),
        harmful: Sequence[Example] = (),
        peft_config: Any = None,
        reference: Kind = "auto",
        reference_model: PreTrainedModel | None = None,
        measure_kl: bool = False,
        cache: Path | str = "runs/cache",
        max_length: int | None = None,
        eval_dataset: Sequence[Example] | Sequence[Mapping[str, object]] | None = None,
        **options: Any,
    ) -> None:
        """Assess the risks, find the reference, wrap the model.

        Args:
            model: A causal language model, as it is before training, or where to load it
                from; it is the reference, without the adapter that it may have.
            args: transformers' own.
            train_dataset: Rows with `messages`, or `prompt` and `completion` (trl's conventions);
                examples; or what `prepare` has made of them.
            processing_class: The model's tokenizer, with a chat template. Default: the one
                that lies beside its weights.
            defence: Turns risks into alpha and beta. Default: `AdaptiveKL()`.
            critic: Gives the risks; not needed by a defence that asks for none.
            anchors: Prompts with the reference's own answers (`anchors.answered`): beta = 1.
            base: The model as it was before alignment, for a defence that needs it.
            safe: Requests answered safely (label 1: harmful, refused; 0: done), likewise.
            harmful: Harmful requests complied with, none of the training data, likewise.
            peft_config: An adapter to train (peft), such as `LoraConfig(...)`; None trains the
                model as it is given, whole or with the adapter that it has.
            reference: cached, adapter-off or copy; auto: cached if there is room on the disk.
            reference_model: The reference policy, where it is another model than `model`; of the
                same tokenizer. It gives the risks too, and stays as it is.
            measure_kl: Log the KL to the reference although nothing is held to it.
            cache: Folder for the cached reference.
            max_length: Most tokens of an example.
            eval_dataset: Rows whose plain NLL is reported.
            options: More for `Trainer` (callbacks, optimizers, ...).

        Raises:
            InputError: Something given cannot be used; names the row where it is one.
        """
        if args.n_gpu > 1:
            raise InputError(
                "several GPUs in one process are not supported: start with `torchrun "
                "--nproc-per-node N`, or show one GPU (CUDA_VISIBLE_DEVICES=0)"
            )
        self.defence = AdaptiveKL() if defence is None else defence
        self.may_shard(args, self.defence)
        check_given(self.defence, {"base": base, "safe": safe, "harmful": harmful})
        chat = chat_of(model, processing_class, args)
        policy: nn.Module = chat.model
        # Where Trainer would move it later: risks and reference are computed there, and a copy or
        # a head that is kept stays there.
        place(policy, args.device)
        source: nn.Module = policy  # of what the reference says
        known_by = chat
        if reference_model is not None:
            refuse_other(reference_model, policy, self.defence, reference)
            place(reference_model, args.device)
            source, known_by = reference_model, replace(chat, model=reference_model)
        if not isinstance(train_dataset, Prepared):
            with adapter_off(source):
                train_dataset = prepare(
                    known_by,
                    _examples(train_dataset),
                    critic=critic,
                    defence=self.defence,
                    anchors=anchors,
                    max_length=max_length,
                )
        if self.sharded and train_dataset.live is not None:
            raise InputError(sharding.BETWEEN.format("a live critic"))
        self.given = Given(chat, base, tuple(safe), tuple(harmful), args.seed, reference_model)
        if self.defence.changes_start and base_of(policy) is not policy:
            raise InputError(
                f"{type(self.defence).__name__} changes the weights that training starts from: "
                "merge the adapter into the model first"
            )
        self.defence = self.defence.before(self.given)
        if self.defence.learns_safe:
            encoded = [encode(one, chat.tokenizer, max_length=max_length) for one in safe]
            train_dataset = train_dataset._replace(safe=encoded)
        self.prepared = train_dataset
        self.risks = torch.tensor([row["risk"] for row in train_dataset.rows()]).to(args.device)
        """s of each row, by its number, as it enters the weights."""
        rows = self.prepared.trained_on
        check_logits(policy, rows[0].input_ids)
        pad = pad_id(chat.tokenizer)
        needed = self.defence.needs_reference or bool(self.prepared.anchors) or measure_kl
        kind = choose(reference, source, rows, Path(cache)) if needed else None
        # What is computed beforehand reads the model before peft touches it.
        self.reference: Reference | None = None
        if kind == "cached":
            # Moments hold for one head that both have.
            other_head = source is not policy and not same_head(source, policy)
            with args.main_process_first(desc="the cached reference"):
                self.reference = Cached.build(
                    Path(cache),
                    source,
                    rows,
                    trains_head=peft_config is None and head_of(policy).weight.requires_grad,
                    hidden=self.defence.direction == "reverse" or other_head,
                    pad=pad,
                    progress=not args.disable_tqdm,
                )
        elif kind == "copy":
            self.reference = Copied(source)
        self._constants: list[Tensor] = []
        if self.defence.has_constants:
            self._constants = constants(
                source, rows, self.defence.of_reference, pad=pad, progress=not args.disable_tqdm
            )
        if peft_config is not None:
            policy = adapted(chat.model, peft_config, args.seed)
        refuse_prompt_learning(policy)
        head_of(policy)
        self._states = Capture(policy, longest=max(len(row.input_ids) for row in rows))
        if kind == "adapter-off":
            self.reference = AdapterOff(policy, self._states)

        args.remove_unused_columns = False  # risk, anchor and row are ours
        args.prediction_loss_only = True
        self._acts = self.defence.steps(policy, self.given)
        self._micro_batches = 1
        self._step_risk: float | None = None
        self._smoothed: float | None = None
        self._sums = Sums()
        held_out = None
        if eval_dataset is not None:
            held_out = plain(_examples(eval_dataset), chat, max_length=max_length)
        side = "left" if chat.tokenizer.padding_side == "left" else "right"
        super().__init__(
            model=policy,
            args=args,
            train_dataset=self.prepared.rows(),
            eval_dataset=held_out,
            processing_class=chat.tokenizer,
            data_collator=partial(collate, pad=pad, side=side),  # type: ignore[arg-type]
            **options,
        )
        self.model_accepts_loss_kwargs = True  # the loss is over the whole optimizer step
        if self.prepared.live is not None:
            self._same_everywhere()
            self.add_callback(Reassessing(self.prepared.live.every, self._reassess))

    def compute_loss(
        self,
        model: nn.Module,
        inputs: dict[str, Tensor],
        return_outputs: bool = False,
        num_items_in_batch: Tensor | int | None = None,
    ) -> Any:
        """sum over answer tokens of alpha_i NLL + beta_i KL, over the step's answer tokens."""
        self.look(model, inputs)
        ids, mask, labels = (inputs[name] for name in ("input_ids", "attention_mask", "labels"))
        answer = answers_of(labels)
        hidden = self._states(model, ids, mask)[:, :-1][answer]
        weights = self._weights(inputs, training=model.training)
        example = answer.nonzero()[:, 0]
        known = None
        if self.reference is not None and model.training:
            known = self.reference.at(Batch(ids, mask, answer, inputs["row"]))
        terms = self.defence.loss(
            At(
                hidden,
                head_of(cast(nn.Module, self.model)),
                labels[:, 1:][answer],
                (answer.cumsum(1) - 1)[answer],
                weights.alpha[example],
                weights.beta[example],
                known,
                self._constants_of(inputs["row"]) if model.training else None,
            )
        )
        if model.training:
            self._sums.add(
                risk=self._risk_of(inputs), beta=weights.beta, nll=terms.nll, kl=terms.kl
            )
        loss = terms.loss / (len(terms.nll) if num_items_in_batch is None else num_items_in_batch)
        if num_items_in_batch is not None and self.args.average_tokens_across_devices:
            loss = loss * self.accelerator.num_processes  # DDP takes the mean over processes
        if model.training and (penalty := self._acts.penalty()) is not None:
            loss = loss + penalty / self._micro_batches
        return (loss, {"loss": loss}) if return_outputs else loss

    def look_at_reference(self, model: nn.Module, inputs: dict[str, Tensor]) -> None:
        """Its KL is zero before the first step, and is not where the policy is moved."""
        if self.reference is not None:
            sharding.check_reference(
                partial(self._kl, model, inputs),
                model,
                dtype=base_of(model).dtype,
                start=self.state.global_step == 0 and self.given.reference is None,
                moves=isinstance(self.reference, AdapterOff),
            )

    @torch.no_grad()
    def _kl(self, model: nn.Module, inputs: dict[str, Tensor]) -> float:
        """Mean KL to the reference over a batch of all processes, nats per answer token."""
        ids, mask, labels = (inputs[name] for name in ("input_ids", "attention_mask", "labels"))
        answer = answers_of(labels)
        with evaluating(model):
            hidden = self._states(model, ids, mask)[:, :-1][answer]
        beta = torch.ones(len(hidden), device=hidden.device)
        assert self.reference is not None
        found = regularized(
            hidden, head_of(model), labels[:, 1:][answer], torch.zeros_like(beta), beta,
            self.reference.at(Batch(ids, mask, answer, inputs["row"])),
            direction=self.defence.direction,
        )  # fmt: skip
        kl, n = self.accelerator.reduce(torch.stack([found.kl.sum(), beta.sum()]), "sum").tolist()
        return kl / n

    def _constants_of(self, rows: Tensor) -> Tensor | None:
        """What the defence has found of the reference at a batch's answer tokens."""
        if not self._constants:
            return None
        found = torch.cat([self._constants[row] for row in rows.tolist()])
        return found.to(rows.device, non_blocking=True)

    def _weights(self, inputs: dict[str, Tensor], *, training: bool) -> Weights:
        """alpha and beta of each example of a batch."""
        if not training:
            s = inputs["risk"].float()
            return Weights(torch.ones_like(s), torch.zeros_like(s))
        s = self._risk_of(inputs)
        if self._step_risk is not None:
            s = torch.full_like(s, self._step_risk)
        alpha, beta = self._acts.now(self.defence).weights(s)
        anchor = inputs["anchor"]
        return Weights(alpha.masked_fill(anchor, 0.0), beta.masked_fill(anchor, 1.0))

    def _risk_of(self, inputs: Mapping[str, Tensor]) -> Tensor:
        """s of each example of a batch, as it is now."""
        return self.risks[inputs["row"].to(self.risks.device)]

    def _reassess(self) -> Risks | None:
        """What a live critic finds of the model as it is now; None in processes that do not ask."""
        found, live = None, self.prepared.live
        if live is not None and self.is_world_process_zero():
            model: Any = self.accelerator.unwrap_model(self.model)
            found = live.assess(replace(self.given.chat, model=model))
            s = torch.from_numpy(self.defence.signal(found)).to(self.risks)
            kept = s[torch.from_numpy(self.prepared.kept).to(s.device)]
            self.risks[: len(kept)] = kept  # anchors and safe rows come after them
        self._same_everywhere()
        return found

    def _same_everywhere(self) -> None:
        """The first process's risks for all of them."""
        if self.accelerator.num_processes > 1:
            self.risks = broadcast(self.risks)

    def get_batch_samples(self, *args: Any, **options: Any) -> Any:
        """All micro-batches of an optimizer step; the step's risk is the mean over its examples."""
        batches, n_items = super().get_batch_samples(*args, **options)
        self._micro_batches = len(batches)
        self._acts.begin(self.state.global_step, self.state.max_steps)
        if self.defence.granularity == "batch" and batches:
            every = {k: torch.cat([one[k] for one in batches]) for k in ("row", "anchor")}
            chosen = self._risk_of(every)[~every["anchor"].to(self.risks.device)]
            sums = torch.stack([chosen.sum(), chosen.new_tensor(len(chosen))])
            total, n = self.accelerator.reduce(sums.to(self.args.device), "sum").tolist()
            if n:  # a step of anchors alone has no risk of its own
                s_t, kept = total / n, self.defence.smoothing
                if self._smoothed is not None:
                    s_t = kept * self._smoothed + (1 - kept) * s_t
                self._step_risk = self._smoothed = s_t
        return batches, n_items

    def train(self, *args: Any, **options: Any) -> Any:
        """Train, and then what the defence does after it."""
        found = super().train(*args, **options)
        self.defence.after(self.accelerator.unwrap_model(self.model), self.given)
        return found

    def _get_train_sampler(self, train_dataset: Any = None) -> Any:
        """Rows of one kind a step, where steps take turns."""
        if not self.prepared.safe:
            return super()._get_train_sampler(train_dataset)
        n_safe, args = len(self.prepared.safe), self.args
        n_user = len(self.prepared.trained_on) - n_safe
        batch, rows = self._train_batch_size * args.world_size, n_user
        if args.dataloader_drop_last:
            rows -= n_user % batch
        elif args.world_size > 1:  # accelerate would fill the last batch from the first one's turn
            rows += -n_user % batch
        return Turns(
            n_user,
            n_safe,
            rows=rows,
            step=batch * args.gradient_accumulation_steps,
            turn=self._acts.turn,
            done=lambda: self.state.global_step,
            seed=args.seed,
        )

    def log(self, logs: dict[str, float], *args: Any, **options: Any) -> None:
        """NLL and KL (nats per answer token), mean risk and mean beta since the last log."""
        if "loss" in logs and self._sums:
            means = self._sums.means(partial(self.accelerator.reduce, reduction="sum"))
            if self.reference is None:  # it is not zero: nobody has looked
                del means["kl"]
            if not self.defence.needs_risk:
                del means["risk"]
            logs = {**logs, **means, **self._acts.logged()}
        super().log(logs, *args, **options)

    def steps(self) -> list[dict[str, Any]]:
        """What was logged of each step; see `regularize.logged.of_steps`."""
        return of_steps(self.state.log_history)

    def floating_point_ops(self, inputs: dict[str, Any]) -> int:  # noqa: ARG002
        """Not counted: walking through all modules at every step costs small models a tenth."""
        return 0

    def _save_optimizer_and_scheduler(self, output_dir: str) -> None:
        super()._save_optimizer_and_scheduler(output_dir)
        if not self.args.should_save:  # one process alone writes these files
            return
        risk: dict[str, Any] = {"smoothed_risk": self._smoothed}
        if self.prepared.live is not None:
            risk["risks"] = self.risks.tolist()
        Path(output_dir, STATE).write_text(json.dumps(risk))
        if state := self._acts.state():
            save_file(state, Path(output_dir, STEPS))

    def _load_optimizer_and_scheduler(self, checkpoint: str | None) -> None:
        super()._load_optimizer_and_scheduler(checkpoint)
        if checkpoint is not None and (state := Path(checkpoint, STATE)).is_file():
            risk = json.loads(state.read_text())
            self._smoothed = risk["smoothed_risk"]
            if "risks" in risk:
                self.risks = torch.tensor(risk["risks"]).to(self.risks)
        if checkpoint is not None and (steps := Path(checkpoint, STEPS)).is_file():
            kept = load_file(steps)  # whose `device` knows no "cpu:0", as one of several has it
            self._acts.restore({name: t.to(self.args.device) for name, t in kept.items()})


def _examples(rows: Sequence[Example] | Sequence[Mapping[str, object]]) -> list[Example]:
    found = list(rows)
    return found if found and isinstance(found[0], Example) else examples(found)  # type: ignore
