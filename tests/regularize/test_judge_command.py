"""`python -m regularize.train critic:judge`: from the server to the risks, the run and its card."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tyro

from probes import models
from probes.commands import run
from regularize import data
from regularize.critics.judge import JudgeCritic
from regularize.remembered import Remembered
from regularize.train import TrainConfig, main
from tests.regularize.judge_server import Act, JudgeServer, honest, score_of

for name in ("openai", "tenacity"):
    pytest.importorskip(name, reason=f"the judge extra is not installed: it needs {name}")

N = 30


@pytest.fixture
def rows(tmp_path: Path) -> Path:
    path = tmp_path / "theirs.jsonl"
    lines = [{"prompt": f"Please dust the lamp {i}.", "completion": f"done {i}"} for i in range(N)]
    path.write_text("\n".join(map(json.dumps, lines)))
    return path


WANTED = [(score_of(f"done {i}") - 1) / 4 for i in range(N)]


def written(out: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (out / "data.jsonl").read_text().splitlines()]


def test_a_server_that_dies_in_the_middle(
    rows: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """No answer is judged twice, and the risks are those of an undisturbed run."""

    def command(port: int) -> int:
        words = [
            "--data", str(rows), "--risk-only", "--out", str(tmp_path / "run"),
            "critic:judge", "--critic.model", "judge",
            "--critic.base-url", f"http://127.0.0.1:{port}/v1", "--critic.retries", "1",
            "--critic.backoff", "0.02", "--critic.concurrency", "4",
            "--critic.cache", str(tmp_path / "judge"),
            "--critic.price-in", "1", "--critic.price-out", "2",
        ]  # fmt: skip
        return run(main, tyro.cli(TrainConfig, args=words))

    with JudgeServer(honest, dies_after=11) as dying:
        assert command(dying.port) == 2
    said = capsys.readouterr().err
    assert "the same command goes on" in said and "Traceback" not in said
    assert dying.answered.total() == 11 and not (tmp_path / "run" / "data.jsonl").exists()
    with JudgeServer(honest, port=dying.port) as again:
        assert command(again.port) == 0
    assert [one["risk"] for one in written(tmp_path / "run")] == WANTED
    counted = dying.answered + again.answered
    assert set(counted.values()) == {1} and len(counted) == N
    shown = " ".join(capsys.readouterr().out.split())
    assert f"exchanges {N}, calls {N - 11}, cached 11, failed 0" in shown
    assert "prompt tokens 3,000, completion tokens 210, cost 0.00342" in shown


def config(server: JudgeServer, rows: Path, folder: Path, **options: Any) -> TrainConfig:
    critic = JudgeCritic(
        "judge", base_url=server.url, backoff=0.01, cache=folder / "judge",
        on_judge_failure="most-cautious", api_key_env="JUDGE_KEY",
    )  # fmt: skip
    return TrainConfig(
        data=str(rows), out=folder / "run", critic=critic, cache=folder / "cache", epochs=0.5,
        batch_size=8, **options,
    )  # fmt: skip


def rambles(answer: str, nth: int) -> Act:
    return Act("Who knows?") if answer in ("done 3", "done 4") else honest(answer, nth)


def test_what_failed_stands_in_the_data_the_log_and_the_card(
    rows: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: Any
) -> None:
    monkeypatch.setenv("JUDGE_KEY", "sk-very-secret")
    with JudgeServer(rambles) as server:
        one = config(server, rows, tmp_path)
        main(one)
        shown = " ".join(capsys.readouterr().out.split())
        assert "2 rows without a verdict have s = 1, out of caution" in shown
        found = written(one.out)
        assert [i for i, row in enumerate(found) if row.get("critic_failed")] == [3, 4]
        assert [row["risk"] for row in found] == [
            1.0 if i in (3, 4) else WANTED[i] for i in range(N)
        ]
        took = json.loads((one.out / "critic.json").read_text())["before"]
        assert (took["calls"], took["failed"]) == (N + 4, 2)
        saved = json.loads((one.out / "run.json").read_text())
        rubric = saved["critic_sources"]["rubric_sha256"]
        card = (one.out / "README.md").read_text()
        assert len(rubric) == 64 and rubric in card
        assert "2 rows that it could not tell about have s = 1" in card
        for path in tmp_path.rglob("*"):
            assert path.is_dir() or b"sk-very-secret" not in path.read_bytes()

        # It is this very run, however the judge is asked; with another rubric it is another.
        asked = server.asked.total()
        main(replace(one, critic=replace(one.critic, retries=1, base_url="http://elsewhere/v1")))
        assert "finished" in capsys.readouterr().out and server.asked.total() == asked
        mine = tmp_path / "mine.txt"
        mine.write_text("{prompt} {answer}")
        assert run(main, replace(one, critic=replace(one.critic, rubric=mine))) == 2
        assert "holds another run, with other critic" in capsys.readouterr().err


def test_bad_options_are_refused_before_anything_is_loaded(
    rows: Path, tmp_path: Path, monkeypatch: Any, capsys: pytest.CaptureFixture[str]
) -> None:
    def refuse(*args: Any, **options: Any) -> None:
        raise AssertionError("a model was loaded")

    monkeypatch.setattr(models, "load", refuse)
    one = TrainConfig(data=str(rows), out=tmp_path / "run", critic=JudgeCritic(every=0))
    assert run(main, one) == 2
    assert "--critic.every 0: must be at least 1" in capsys.readouterr().err


def test_remembered_risks_hold_no_failure(rows: Path, tmp_path: Path, monkeypatch: Any) -> None:
    monkeypatch.setenv("JUDGE_KEY", "sk-very-secret")
    chat = models.load("miniature/llama")
    examples = data.load(str(rows))
    better: dict[str, Callable[[str, int], Act]] = {"act": rambles}
    with JudgeServer(lambda answer, nth: better["act"](answer, nth)) as server:
        critic = config(server, rows, tmp_path).critic
        one = Remembered(critic, tmp_path / "cache")
        found = one.assess(examples, chat)
        assert found.failed is not None and found.failed.sum() == 2
        assert not list((tmp_path / "cache").glob("risks-*"))
        better["act"] = honest  # and it is asked once more
        well = Remembered(replace(critic, attempts=4), tmp_path / "cache").assess(examples, chat)
        assert well.failed is None
        np.testing.assert_array_equal(well.s, WANTED)
        assert len(list((tmp_path / "cache").glob("risks-*"))) == 1
        asked = server.asked.total()
        again = Remembered(replace(critic, attempts=4), tmp_path / "cache").assess(examples, chat)
        np.testing.assert_array_equal(again.s, WANTED)
        assert server.asked.total() == asked == N + 6


def test_live_by_the_command(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    critic = JudgeCritic("scripted", mode="live", every=2, answer_tokens=8, cache=tmp_path / "j")
    path = tmp_path / "few.jsonl"
    lines = [{"prompt": f"Please dust the lamp {i}.", "completion": "Done."} for i in range(8)]
    path.write_text("\n".join(map(json.dumps, lines)))
    main(
        TrainConfig(
            data=str(path), out=tmp_path / "run", critic=critic, cache=tmp_path / "cache",
            epochs=4, batch_size=8,
        )
    )  # fmt: skip
    shown = " ".join(capsys.readouterr().out.split())
    assert "mean risk s as the model in training answers: 0.000 at step 2" in shown
    assert {row["risk"] for row in written(tmp_path / "run")} == {0.0}
    took = json.loads((tmp_path / "run" / "critic.json").read_text())
    assert took["before"]["exchanges"] == 8 and took["before"]["calls"] == 8
    assert [(look["step"], look["risk"]) for look in took["looks"]] == [(2, 0.0)]
