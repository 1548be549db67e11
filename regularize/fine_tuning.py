"""What `python -m regularize.train` does, from the data to the run's folder.

OUT/run.json              the arguments, and the releases of the libraries in use
OUT/data.jsonl            the training rows with their risk, training data again
OUT/critic.json           what the critic took (calls, tokens, cost), and what it found each time
                          that it looked at the model in training
OUT/anchors.jsonl         the anchors, as the reference answers them
OUT/adapter_*             the adapter (or, with --full or where a defence has changed the weights
                          before training, the whole model), and README.md, its card
OUT/steps.{parquet,csv}   loss, NLL, KL, mean risk, mean beta and gradient norm of each step
OUT/drift.{parquet,csv}   AUROC of the critic's frozen probe on the model in training
OUT/betas.{parquet,csv}   drift and beta of each step, where beta is moved to keep a budget
OUT/checkpoints/          removed when the run is finished
OUT/done.json             written last

A run that was stopped goes on from its last whole checkpoint, on the same trajectory.
"""

from __future__ import annotations

import json
import shutil
import sys
from collections.abc import Mapping, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from rich.console import Console

from analysis import results
from analysis.rows import StepRow
from probes import models, prompts
from probes.commands import arguments
from probes.errors import InputError
from probes.folders import last_checkpoint
from probes.frozen import FrozenProbe
from probes.manifest import slug
from probes.models import ChatModel
from regularize import anchors, card, controller, data, drift, live, sharding, show
from regularize.critics import Critic
from regularize.critics.probe import probe_of
from regularize.given import given
from regularize.measures import Arm
from regularize.noise import without_noise
from regularize.plugins import name_of
from regularize.prepare import Prepared, prepare

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

    from regularize.train import TrainConfig
    from regularize.trainer import RegularizedTrainer

CONFIG, DATA, ANCHORS, DONE = "run.json", "data.jsonl", "anchors.jsonl", "done.json"
CRITIC = "critic.json"
SWEEPS = Path("runs/layer_sweep")
DEFAULT_DATA = "miniature:mixed"


def fine_tune(config: TrainConfig) -> None:
    """Assess the risks, show them, train, save.

    Raises:
        InputError: Something given cannot be used, or OUT holds another run.
    """
    from regularize.trainer import RegularizedTrainer

    without_noise()
    args = _arguments(config)
    sharding.refuse(args, config.defence)
    first = args.process_index == 0
    console = Console(width=None if sys.stdout.isatty() else 100, highlight=False, quiet=not first)
    assessed = config.defence.needs_risk or config.risk_only
    if assessed or config.watched is not None:
        with args.main_process_first(desc="the probe"):
            config = replace(config, critic=_critic(config))
    if _is_done(config):
        console.print(f"{config.out} holds this very run, finished: delete it to do it again")
        return
    examples = data.load(config.data or DEFAULT_DATA, seed=config.seed)
    chat = models.load(
        config.model,
        revision=config.revision,
        dtype=config.weights,
        # Not spread over all GPUs: under torchrun each process has one of its own.
        device_map=config.device_map or str(args.device),
        chat_template=config.chat_template,
    )
    _refuse_half(chat)
    prepared = prepare(
        chat,
        examples,
        critic=config.critic if assessed else None,
        defence=config.defence,
        max_length=config.max_length or models.context_length(chat.model),
    )
    show.data(prepared, chat, console)
    if assessed:
        show.risks(prepared, console)
    if first:
        _write_data(prepared, config.out, assessed=assessed)
    console.print(f"training rows with their risks: {config.out / DATA}", markup=False)
    if config.risk_only:
        return
    if first:
        results.replace({config.out / CONFIG: _to_json(config).encode()})
    if config.anchors is not None:
        with args.main_process_first(desc="anchors"):
            prepared = _with_anchors(prepared, chat, config, console)
    trainer = RegularizedTrainer(
        chat.model,
        args,
        prepared,
        processing_class=chat.tokenizer,
        defence=config.defence,
        **given(config.defence, config.given, chat, seed=config.seed),
        peft_config=None if config.full else _lora(config),
        reference=config.reference,
        measure_kl=config.measure_kl,
        cache=config.cache,
        callbacks=[show.Progress(console), *_canaries(config, chat)],
    )
    show.quiet(trainer)
    if trainer.reference is not None:
        console.print(f"reference: {type(trainer.reference).__name__.lower()}", markup=False)
    with args.main_process_first(desc="looking for checkpoints"):
        checkpoint = last_checkpoint(config.out / "checkpoints")
    trainer.train(resume_from_checkpoint=checkpoint)
    _save(trainer, chat.tokenizer, prepared, config)
    console.print(
        f"learnt in {trainer.state.global_step} steps: {show.terms(trainer.steps()[-1])} nats per "
        "answer token at the last"
    )
    if looked := live.said(trainer.state.log_history):
        console.print(looked, markup=False)
    if watched := drift.rows(trainer.state.log_history, Arm(config.model)):
        console.print(drift.said(watched))
    console.print(
        f"saved in {config.out}; what became of it:\n  {_evaluation(config)}",
        markup=False,
        soft_wrap=True,
    )


def _evaluation(config: TrainConfig) -> str:
    """The command that evaluates the run."""
    words = ["python -m regularize.evaluate"]
    words += [f"--model {config.out}"] if config.whole else [f"--model {config.model}"]
    words += [] if config.whole else [f"--adapter {config.out} --base"]
    for name in ("revision", "dtype", "chat_template"):
        value = getattr(config, name)
        if value not in (None, "auto") and not (config.whole and name == "revision"):
            words.append(f"--{name.replace('_', '-')} {value}")
    if config.whole or not config.is_miniature:
        words.append("--harmful SET --look-alikes SET --utility TASK")
    return " ".join(words)


def _arguments(config: TrainConfig) -> Any:
    from transformers import TrainingArguments

    # Named only where it is wanted: its name is changing.
    asked: dict[str, Any] = (
        {"gradient_checkpointing": True} if config.gradient_checkpointing else {}
    )
    if config.fsdp:
        asked |= {"fsdp": True, "fsdp_config": dict(sharding.OPTIONS)}
    return TrainingArguments(
        str(config.out / "checkpoints"),
        per_device_train_batch_size=config.batch_size,
        gradient_accumulation_steps=config.accumulate,
        num_train_epochs=config.epochs,
        learning_rate=config.rate,
        lr_scheduler_type="cosine",
        warmup_steps=config.warmup,
        weight_decay=config.weight_decay,
        max_grad_norm=config.clip,
        logging_steps=1,
        save_steps=config.save_steps,
        save_total_limit=2,
        report_to=list(config.report_to) or "none",
        seed=config.seed,
        disable_tqdm=True,
        # Autocast: the adapter's weights are float32, and so are all of --full.
        bf16=torch.cuda.is_available() and config.dtype != "float32" and not config.is_miniature,
        dataloader_pin_memory=torch.accelerator.is_available(),
        # Else accelerate sees one process where torchrun has started several on CPUs.
        use_cpu=not torch.accelerator.is_available(),
        **asked,
    )


def _lora(config: TrainConfig) -> Any:
    from peft import LoraConfig

    targets = config.lora.targets
    return LoraConfig(
        r=config.lora.r,
        lora_alpha=config.lora.alpha,
        lora_dropout=config.lora.dropout,
        target_modules=targets[0] if targets == ("all-linear",) else list(targets),
        task_type="CAUSAL_LM",
    )


def _critic(config: TrainConfig) -> Critic:
    """The critic; a probe that is not named is the one that the model's sweep has left."""
    critic = config.critic
    probe = probe_of(critic)
    if probe is None or probe.path is not None:
        return critic
    folder = SWEEPS / slug(config.model)
    found = sorted(path.parent for path in folder.glob("*/probe/config.json"))
    if not found and config.is_miniature:
        from probes import layer_sweep
        from probes.layer_sweep import SweepConfig

        layer_sweep.main(SweepConfig(models=(config.model,)))
        found = sorted(path.parent for path in folder.glob("*/probe/config.json"))
    if len(found) > 1:
        raise InputError(
            f"the sweep of {config.model} has left several probes; choose one with "
            f"critic:probe --critic.path: {', '.join(map(str, found))}"
        )
    if not found:
        return critic
    named = replace(probe, path=str(found[0]))
    return named if critic is probe else replace(critic, probe=named)  # type: ignore[type-var]


def _canaries(config: TrainConfig, chat: ChatModel) -> list[Any]:
    """What watches whether the critic's probe still reads the model."""
    probe = probe_of(config.critic)
    if config.watched is None or probe is None:
        return []
    return [
        drift.Canary(
            FrozenProbe.from_pretrained(str(probe.path)),
            prompts.load(config.watched, seed=config.seed),
            chat.tokenizer,
            every=config.canary_every,
        )
    ]


def _with_anchors(
    prepared: Prepared, chat: ChatModel, config: TrainConfig, console: Console
) -> Prepared:
    """The anchors beside the data: answered once, and kept, so that a run goes on with the same."""
    path = config.out / ANCHORS
    if path.is_file():
        examples = anchors.read(path)
    else:
        asked = anchors.load(str(config.anchors), n=config.n_anchors, seed=config.seed)
        examples = anchors.answered(
            chat, asked, max_new_tokens=config.anchor_tokens, progress=not console.quiet
        )
        anchors.write(examples, path)
    limit = config.max_length or models.context_length(chat.model)
    encoded = [data.encode(one, chat.tokenizer, max_length=limit) for one in examples]
    console.print(f"{len(encoded)} anchors beside them: {path}", markup=False)
    return prepared._replace(anchors=encoded)


def _refuse_half(chat: ChatModel) -> None:
    """Refuse weights whose gradients underflow."""
    if chat.model.dtype == torch.float16:
        raise InputError(
            f"the weights of {chat.name} are float16, in which gradients underflow; train with "
            "--dtype bfloat16 or --dtype float32"
        )


def _write_data(prepared: Prepared, out: Path, *, assessed: bool) -> None:
    """The training rows with their risk: training data again, for critic:column."""
    flagged, failed = prepared.risks.flagged, prepared.risks.failed
    if assessed:
        risks: list[float | None] = prepared.risks.s.tolist()
    else:  # what the rows said themselves
        risks = [example.risk for example in prepared.examples]
    rows = [
        {
            "prompt": list(example.prompt),
            "completion": example.answer,
            **({} if example.label is None else {"label": example.label}),
            **({} if risks[i] is None else {"risk": risks[i]}),
            **({} if flagged is None else {"flagged": bool(flagged[i])}),
            **({} if failed is None or not failed[i] else {"critic_failed": True}),
            "kept": bool(prepared.kept[i]),
            "where": example.where,
        }
        for i, example in enumerate(prepared.examples)
    ]
    results.replace({out / DATA: results.jsonl(rows)})
    _write_tally(prepared.risks.tally, [], out)


def _write_tally(
    tally: Mapping[str, float] | None, looks: Sequence[Mapping[str, float]], out: Path
) -> None:
    """What a critic has counted, if it counts."""
    if tally is None:
        return
    found = {"before": dict(tally), "looks": list(looks)}
    results.replace({out / CRITIC: (json.dumps(found, indent=2) + "\n").encode()})


def _to_json(config: TrainConfig) -> str:
    named = {"critic": name_of(config.critic), "defence": name_of(config.defence)}
    more = {"critic_sources": dict(sources)} if (sources := config.critic.sources) else {}
    return arguments(config, "torch", "transformers", "peft", "accelerate", named=named, **more)


def _is_done(config: TrainConfig) -> bool:
    """Whether the folder holds this run, finished; refuse one that holds another."""
    path = config.out / CONFIG
    if not path.is_file():
        return False
    begun = (config.out / DONE).is_file() or any((config.out / "checkpoints").glob("checkpoint-*"))
    if not begun:  # nothing is there that another run would spoil
        (config.out / ANCHORS).unlink(missing_ok=True)
        return False
    theirs, ours = json.loads(path.read_text()), json.loads(_to_json(config))
    for saved in (theirs, ours):
        for name in config.critic.incidental:
            saved["critic"].pop(name, None)
    ignored = {"versions", "risk_only", "report_to"}
    other = [name for name in ours if name not in ignored and theirs.get(name) != ours[name]]
    if other:
        raise InputError(
            f"{config.out} holds another run, with other {', '.join(other)}; give another --out, "
            "or delete that folder"
        )
    return (config.out / DONE).is_file()


def _save(
    trainer: RegularizedTrainer,
    tokenizer: PreTrainedTokenizerBase,
    prepared: Prepared,
    config: TrainConfig,
) -> None:
    """The adapter or the model, its card, the log; then the checkpoints are not needed."""
    gathered = trainer.gathered()  # by all processes
    if not trainer.is_world_process_zero():
        return
    # Not by Trainer.save_model, which adds a pickle of its arguments.
    model: Any = trainer.accelerator.unwrap_model(trainer.model)
    if config.whole and not config.full:
        model = model.merge_and_unload()
    model.save_pretrained(config.out, **({} if gathered is None else {"state_dict": gathered}))
    tokenizer.save_pretrained(config.out)
    steps = trainer.steps()
    about = Arm(
        config.model,
        defence=name_of(config.defence),
        critic=name_of(config.critic) if config.defence.needs_risk else "none",
        attack=config.data or DEFAULT_DATA,
        harmful_share=data.harmful_share(prepared.examples),
        learning_rate=config.rate,
        seed=config.seed,
    )
    results.write_all(
        {
            "steps": [StepRow(**asdict(about), **step) for step in steps],
            "drift": drift.rows(trainer.state.log_history, about),
            "betas": controller.rows(trainer.state.log_history, about),
        },
        config.out,
    )
    looks = live.looks_of(trainer.state.log_history)
    _write_tally(prepared.risks.tally, looks, config.out)
    known = replace(config, defence=trainer.defence)  # with what it has found out
    written = card.text(known, prepared, steps[-1])
    results.replace({config.out / "README.md": written.encode()})
    results.replace({config.out / DONE: json.dumps({"steps": len(steps)}).encode()})
    shutil.rmtree(config.out / "checkpoints", ignore_errors=True)
