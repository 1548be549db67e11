"""The whole command on a miniature: results, reuse, controls, and what it refuses."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from probes import prompts
from probes.errors import InputError
from probes.layer_sweep import SweepConfig, main

HELD_OUT = ("category", "twins")


@pytest.fixture(scope="module")
def swept(tmp_path_factory):
    """One model on a few hundred prompts of its language, as a user's own files."""
    folder = tmp_path_factory.mktemp("sweep")
    for name, split, n in (
        ("mine", "test", 240),
        ("category", "held-out-category", 80),
        ("twins", "look-alikes", 80),
    ):
        write(folder / f"{name}.jsonl", prompts.load(f"miniature:{split}").prompts[:n])
    config = SweepConfig(
        models=("miniature/llama",),
        train=(str(folder / "mine.jsonl"),),
        held_out=tuple(str(folder / f"{name}.jsonl") for name in HELD_OUT),
        out=folder / "out",
        cache=folder / "cache",
        C=(1e-2, 1.0),
        folds=3,
    )
    main(config)
    return config


def write(path: Path, rows) -> None:
    """Rows as a user would write them."""
    fields = [{"prompt": row.text, "label": row.label, "group": row.group} for row in rows]
    path.write_text("\n".join(map(json.dumps, fields)))


def contents(folder: Path) -> dict[str, bytes]:
    return {str(p.relative_to(folder)): p.read_bytes() for p in folder.rglob("*") if p.is_file()}


def test_every_readout_is_scored_on_every_set(swept):
    scores = pd.read_csv(swept.out / "scores.csv")
    n_layers = scores["layer"].max() + 1
    per_set = 1 + 2 * n_layers + 2 + 3  # embedding, layers and class means, pooled, floors
    assert set(scores["eval_set"]) == {"mine", *HELD_OUT}
    assert (scores.groupby("eval_set").size() == per_set).all()
    assert (scores["held_out"] == (scores["eval_set"] != "mine")).all()
    assert ((scores["auroc_lo"] <= scores["auroc"]) & (scores["auroc"] <= scores["auroc_hi"])).all()


def test_a_constant_token_tells_nothing_at_the_embedding(swept):
    scores = pd.read_csv(swept.out / "scores.csv")
    assert (scores.loc[scores["readout"] == "embedding", "auroc"] == 0.5).all()
    # Positive control: deeper, the same token tells a good deal.
    inside = scores[(scores["readout"] == "layer") & ~scores["held_out"]]
    assert inside["auroc"].max() > 0.8


def test_in_distribution_scores_are_scikit_learns_out_of_fold(swept):
    """Independent route: transformers' own hidden states, scikit-learn's own cross-validation."""
    import torch
    from sklearn.linear_model import LogisticRegression
    from sklearn.metrics import roc_auc_score
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler
    from transformers import AutoModelForCausalLM, AutoTokenizer

    from probes import miniature
    from probes.folds import Folds

    folder = miniature.folder("llama")
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
    tokenizer = AutoTokenizer.from_pretrained(folder)
    rows = prompts.load(swept.train[0])
    layer, states = 2, []
    with torch.inference_mode():
        for messages in rows.messages:
            ids = tokenizer.apply_chat_template(
                [dict(m) for m in messages], add_generation_prompt=True, return_tensors="pt"
            )["input_ids"]
            out = model(ids, output_hidden_states=True).hidden_states[layer + 1]
            states.append(out[0, -1].numpy())
    X, y = np.stack(states), rows.labels
    folds = Folds.of(y, rows.groups, folds=3, seed=0)
    scores = pd.read_csv(swept.out / "scores.csv")
    ours = scores[
        (scores["readout"] == "layer") & (scores["layer"] == layer) & ~scores["held_out"]
    ]["auroc"].item()
    by_C = {}
    for C in swept.C:
        aurocs = []
        for k in range(3):
            test = folds.fold == k
            probe = make_pipeline(
                StandardScaler(), LogisticRegression(C=C, tol=1e-8, max_iter=5000)
            ).fit(X[~test], y[~test])
            aurocs.append(roc_auc_score(y[test], probe.decision_function(X[test])))
        by_C[C] = float(np.mean(aurocs))
    # C is chosen within each training split, so ours lies between the two fixed ones.
    assert min(by_C.values()) - 1e-3 <= ours <= max(by_C.values()) + 1e-3


def test_more_probes_are_frozen_beside_it(swept, tmp_path):
    from probes.frozen import FrozenProbe

    out = tmp_path / "out"
    config = replace(swept, held_out=swept.held_out[:1], also=("all", "pooled"), out=out)
    main(config)
    (folder,) = out.glob("miniature-llama/*/probe")
    found = {path.name: FrozenProbe.from_pretrained(path) for path in folder.parent.glob("probe*")}
    n = found["probe"].config.n_layers
    assert set(found) == {"probe", "probe-pooled", *(f"probe-{layer}" for layer in range(n))}
    for layer in range(n):
        assert found[f"probe-{layer}"].config.layers == (layer,)
    best = found["probe"].config.layers[0]
    assert (found["probe"].weight == found[f"probe-{best}"].weight).all()
    assert found["probe-pooled"].config.readout == "pooled-mean"
    for also, message in ((("best",), "--also 'best'"), (("99",), "--also 99: ")):
        with pytest.raises(InputError, match=message):
            main(replace(config, also=also))


def test_the_exported_probe_gives_the_risks_in_the_table(swept):
    from probes import models
    from probes.frozen import FrozenProbe

    chat = models.load("miniature/llama")
    (folder,) = swept.out.glob("miniature-llama/*/probe")
    rows = prompts.load(swept.held_out[0])
    risk = FrozenProbe.from_pretrained(folder).risk(chat.model, chat.tokenizer, rows.texts[:40])
    table = pd.read_csv(swept.out / "risks.csv").set_index(["eval_set", "id"])["risk"]
    wanted = [table[HELD_OUT[0], row.id] for row in rows.prompts[:40]]
    np.testing.assert_allclose(risk.numpy(), wanted, atol=1e-5)


def test_a_second_run_reuses_everything_and_changes_nothing(swept, monkeypatch):
    before = contents(swept.out) | contents(swept.cache)
    monkeypatch.setattr("probes.scoring.sweep", forbidden)
    monkeypatch.setattr("probes.filling.capture_rows", forbidden)
    main(swept)
    assert contents(swept.out) | contents(swept.cache) == before


def forbidden(*_args, **_kwargs):
    raise AssertionError("computed again")


def test_another_setting_is_computed_anew(swept, monkeypatch):
    monkeypatch.setattr("probes.scoring.sweep", forbidden)
    with pytest.raises(AssertionError, match="computed again"):
        main(replace(swept, C=(1e-3, 1.0), out=swept.out.with_name("other")))


def test_export_freezes_what_was_asked_for(swept):
    for export, layers in (("1", [1]), ("pooled", None)):
        out = swept.out.with_name(f"export-{export}")
        main(replace(swept, export=export, held_out=(), out=out))
        (config,) = out.glob("miniature-llama/*/probe/config.json")
        saved = json.loads(config.read_text())
        found = saved.get("config", saved)["layers"]
        assert found == layers if layers else len(found) > 1


def test_rows_of_the_train_set_are_left_out_of_a_held_out_set(tmp_path):
    """A planted leak: the held-out file holds half of the train file's rows."""
    rows = prompts.load("miniature:test").prompts[:160]
    write(tmp_path / "a.jsonl", rows[:120])
    write(tmp_path / "b.jsonl", rows[60:])
    main(
        SweepConfig(
            models=("miniature/phi3",),
            train=(str(tmp_path / "a.jsonl"),),
            held_out=(str(tmp_path / "b.jsonl"),),
            out=tmp_path / "out",
            cache=tmp_path / "cache",
            folds=3,
        )
    )
    scores = pd.read_csv(tmp_path / "out" / "scores.csv")
    held_out = scores[scores["held_out"]]
    assert (held_out["n_pos"] + held_out["n_neg"] == 40).all()
    assert len(pd.read_csv(tmp_path / "out" / "risks.csv").query("held_out")) == 40


def test_a_real_pretrained_model_is_swept_by_folder(data_dir, tmp_path):
    """Real weights for plumbing: children's stories, no evidence about harm."""
    main(
        SweepConfig(
            models=(str(data_dir / "models" / "stories260k"),),
            train=(f"xstest={data_dir / 'prompts' / 'xstest.csv'}",),
            out=tmp_path / "out",
            cache=tmp_path / "cache",
            chat_template="plain",
            C=(1e-2,),
        )
    )
    scores = pd.read_csv(tmp_path / "out" / "scores.csv")
    assert scores["auroc"].notna().all()
    assert scores["layer"].max() == 4


def test_help_is_quick_and_complete():
    start = time.perf_counter()
    done = subprocess.run(
        [sys.executable, "-X", "importtime", "-m", "probes.layer_sweep", "--help"],
        capture_output=True, text=True, env={**os.environ, "COLUMNS": "100"},
    )  # fmt: skip
    assert done.returncode == 0
    for flag in ("--models", "--train", "--held-out", "--backend", "--export", "--chat-template"):
        assert flag in done.stdout
    loaded = {line.rpartition("|")[2].strip() for line in done.stderr.splitlines()}
    assert "tyro" in loaded  # positive control: the list does name what is imported
    assert not loaded & {"torch", "transformers", "sklearn", "pandas", "matplotlib", "datasets"}
    assert time.perf_counter() - start < 20  # it takes a second; this is for a hanging machine


def test_config_says_what_cannot_work():
    with pytest.raises(InputError, match="--folds 1"):
        SweepConfig(folds=1).check()
    SweepConfig().check()
