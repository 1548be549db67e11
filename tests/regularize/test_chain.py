"""Chains: what each link is held to, and that one that was stopped goes on."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
import torch

from analysis import results
from analysis.rows import StepRow
from probes import models
from probes.errors import InputError
from regularize import chains, data, links
from regularize.arms import NONE, PAPER
from regularize.chain import ChainConfig, main
from regularize.critics.probe import ProbeCritic
from regularize.testbeds.miniature.training import training

LABEL = "adaptive-kl/label"


@pytest.fixture
def config(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> ChainConfig:
    """Chains of a few rows each, without probes, which take a sweep."""
    monkeypatch.setattr(links, "_sweep", lambda *_: None)
    monkeypatch.setattr(links, "_read", lambda *_: [])
    monkeypatch.setattr(links, "DRIFT_PROMPTS", 8)
    rows = training("mixed", seed=7)
    paths = []
    for name, part in (("a", rows[:12]), ("b", rows[12:24])):
        path = tmp_path / f"{name}.jsonl"
        lines = [{"prompt": one.text, "completion": one.answer, "label": one.label} for one in part]
        results.replace({path: results.jsonl(lines)})
        paths.append(str(path))
    return ChainConfig(
        data=tuple(paths), arms=(LABEL,), seeds=(1,), n=6, learning_rate=0.02, epochs=4, jobs=1,
        out=tmp_path / "out",
    )  # fmt: skip


def chain_folder(config: ChainConfig, reference: str) -> Path:
    found = [one for one in chains.chains(config) if one.reference == reference]
    assert len(found) == 1
    return config.out / "chains" / found[0].name()


def naive_kl(reference: Any, policy: Any, path: str) -> float:
    """Mean over the rows' answer tokens, from whole distributions in float64."""
    total, n = 0.0, 0
    ref, own = reference.model.double(), policy.model.double()
    with torch.no_grad():
        for one in data.load(path):
            row = data.encode(one, reference.tokenizer)
            ids, labels = torch.tensor(row.input_ids), torch.tensor(row.labels)
            log_p, log_q = (
                model(input_ids=ids[None]).logits[0, :-1][labels[1:] != data.IGNORE].log_softmax(-1)
                for model in (ref, own)
            )
            total += float((log_p.exp() * (log_p - log_q)).sum())
            n += len(log_p)
    return total / n


def first_kl(folder: Path) -> float:
    """At the first step of a link, which is of all its rows, and where nothing is trained yet."""
    return float(results.read(folder / "steps.parquet", StepRow)["kl"].iloc[0])


def test_a_fixed_reference_is_the_first_model_and_a_moving_one_the_links_start(
    config: ChainConfig,
) -> None:
    main(replace(config, data=config.data[:1]))
    begins = config.out / "begins"
    shutil.copytree(chain_folder(config, "fixed") / "link-1" / "model", begins)
    for reference in ("fixed", "moving"):  # the first link is the same
        assert first_kl(chain_folder(config, reference) / "link-1") == pytest.approx(0, abs=1e-6)
    main(config)  # goes on from there
    first, start = models.load("miniature/llama"), models.load(str(begins))
    wanted = naive_kl(first, start, config.data[1])
    assert wanted > 0.01
    assert first_kl(chain_folder(config, "fixed") / "link-2") == pytest.approx(wanted, rel=1e-3)
    assert first_kl(chain_folder(config, "moving") / "link-2") == pytest.approx(0, abs=1e-6)

    table = pd.read_csv(config.out / "chains.csv")
    assert set(table["link"]) == {0, 1, 2} and set(table["reference"]) == {"fixed", "moving"}
    drift = table[table["metric"] == "drift"].set_index(["reference", "link"])["value"]
    assert drift["fixed", 0] == pytest.approx(0, abs=1e-6) and drift["fixed", 1] > 1e-5
    assert drift["fixed", 1] == drift["moving", 1] != drift["moving", 2] != drift["fixed", 2]
    assert table["harmful_share"].isna().all() and set(table["attack"]) == {chains.FILES}
    # Of a chain the last model alone is kept.
    kept = [path.parent.name for path in config.out.glob("chains/*/*/model")]
    assert kept == ["link-2", "link-2"]


def test_a_chain_that_was_stopped_goes_on(
    config: ChainConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = replace(config, references=("fixed",))
    main(replace(config, out=config.out / "whole"))
    link = links._link

    def stopped(chain: Any, number: int, *rest: Any) -> None:
        link(chain, number, *rest)
        if number == 1:
            raise RuntimeError("the power is gone\nand more of it")

    with monkeypatch.context() as patch:
        patch.setattr(links, "_link", stopped)
        with pytest.raises(InputError, match=r"chains that failed: 1(.|\n)*the power is gone"):
            main(config)
    folder = chain_folder(config, "fixed")
    done = folder / "link-1" / chains.DONE
    before = done.stat().st_mtime_ns
    main(config)
    assert done.stat().st_mtime_ns == before
    tables = [pd.read_csv(out / "chains.csv") for out in (config.out, config.out / "whole")]
    pd.testing.assert_frame_equal(*tables)

    # What is finished is not done again; what has other settings is, from its beginning.
    last = folder / "link-2" / chains.DONE
    before = last.stat().st_mtime_ns
    main(config)
    assert last.stat().st_mtime_ns == before
    main(replace(config, n=7))
    assert last.stat().st_mtime_ns > before
    assert json.loads((folder / "link-0" / chains.DONE).read_text())["n"] == 7
    # Where the model is gone that a link begins with, the chain begins anew.
    shutil.rmtree(folder / "link-2")
    was = (folder / "link-1" / chains.DONE).stat().st_mtime_ns
    main(replace(config, n=7))
    assert (folder / "link-1" / chains.DONE).stat().st_mtime_ns > was


def test_which_chains_there_are() -> None:
    config = ChainConfig(seeds=(1, 2))
    found = chains.chains(config)
    one = [chain for chain in found if chain.seed == 1]
    assert [(chain.arm.name, chain.reference, chain.share) for chain in one] == [
        ("none/none", "none", 0.09),
        ("adaptive-kl/probe", "fixed", 0.09),
        ("adaptive-kl/probe", "moving", 0.09),
        ("anchored+anchors/probe", "fixed", 0.09),
        ("anchored+anchors/probe", "moving", 0.09),
        ("none/none", "none", 0.0),
    ]
    assert len(found) == 12 and len({chain.name() for chain in found}) == 12
    assert len(chains.chains(replace(config, control=False, references=("fixed",)))) == 6
    filtered = replace(config, arms=("filter/probe",), control=False)
    assert {chain.reference for chain in chains.chains(filtered)} == {"fixed", "moving"}


def test_no_two_links_have_the_same_data() -> None:
    config = ChainConfig(seeds=(1, 2, 3))
    chain = chains.Chain("miniature/llama", NONE, "none", 0.09, 0)
    drawn = {
        tuple(one.text for one in chains.data_of(chain._replace(seed=seed), link, config))
        for seed in config.seeds
        for link in (1, 2)
    }
    assert len(drawn) == 6
    assert any(one.label for one in chains.data_of(chain, 1, config))
    assert not any(one.label for one in chains.data_of(chain._replace(share=0.0), 1, config))


def test_the_probe_is_the_first_models_and_says_so_where_the_model_is_another() -> None:
    config = ChainConfig()
    for reference, elsewhere in (("fixed", False), ("moving", True)):
        chain = chains.Chain("miniature/llama", PAPER, reference, 0.09, 1)  # type: ignore[arg-type]
        critic = links._critic(chain, config)
        assert isinstance(critic, ProbeCritic)
        assert critic.allow_mismatch is elsewhere and "miniature-llama" in str(critic.path)


def test_an_attack_that_breaks_nothing_fails_the_chains(
    config: ChainConfig, tmp_path: Path
) -> None:
    weak = replace(config, data=(), links=1, arms=("none/none",), control=False, epochs=0.1,
                   learning_rate=1e-6)  # fmt: skip
    with pytest.raises(InputError, match=r"positive control failed.*complies with 0%"):
        main(weak)
    assert (config.out / "chains.csv").is_file()  # what was measured is still there


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"models": ("Qwen/Qwen2.5-0.5B-Instruct",)}, "models of its testbeds only"),
        ({"seeds": ()}, "--seeds needs at least one"),
        ({"references": ()}, "--references needs at least one"),
        ({"links": 0}, "--links 0: must be at least 1"),
        ({"arms": ("no/such",)}, "--arms no/such: no experiment on miniature has such an arm"),
        ({"arms": ("vaccine/none",)}, "give --references moving"),
        ({"models": ("miniature/llama", "realistic/aligned")}, "of several testbeds"),
    ],
)
def test_what_cannot_be_a_chain(change: dict, message: str) -> None:
    with pytest.raises(InputError) as error:
        main(replace(ChainConfig(), **change))
    assert message in str(error.value)


def test_data_that_are_not_there(config: ChainConfig, tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"chains that failed: 2(.|\n)*nothing\.jsonl"):
        main(replace(config, data=(str(tmp_path / "nothing.jsonl"),)))
