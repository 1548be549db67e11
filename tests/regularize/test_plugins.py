"""A critic or a defence is added by adding a file."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from dataclasses import asdict
from pathlib import Path
from types import ModuleType

import numpy as np
import pandas as pd
import pytest
import torch
import tyro
from matplotlib.text import Text

from analysis.defences import markdown
from analysis.figures import safety_utility
from probes.models import ChatModel
from regularize import critics, defences, grid, measures
from regularize.compare import CompareConfig
from regularize.critics import Critic
from regularize.data import examples
from regularize.defences import Defence
from regularize.plugins import choices, found, name_of
from tests.conftest import make_model, make_tokenizer

CRITIC = '''
"""Long requests are risky."""
from dataclasses import dataclass
import numpy as np
from regularize.critics import Critic, Risks

class _Helper(Critic):
    pass

@dataclass(frozen=True)
class LengthCritic(_Helper):
    """Risk = length over `longest`."""
    longest: int = 100
    """Characters."""

    def assess(self, examples, chat):
        return Risks(np.array([len(one.text) / self.longest for one in examples]), None)
'''
DEFENCE = '''
"""Half of everything."""
from dataclasses import dataclass
from regularize.defences import Defence, Weights

@dataclass(frozen=True)
class Half(Defence):
    """L = share NLL."""
    share: float = 0.5
    """Of the NLL."""

    def weights(self, s):
        return Weights(s.new_full(s.shape, self.share), s.new_zeros(s.shape))
'''


Add = Callable[[ModuleType, str, str], None]


@pytest.fixture
def add(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Add]:
    """`add(package, name, code)`: one more file in the folder of a package."""
    made: list[str] = []

    def write(package: ModuleType, name: str, code: str) -> None:
        folder = tmp_path / package.__name__
        folder.mkdir(exist_ok=True)
        (folder / f"{name}.py").write_text(code)
        if str(folder) not in package.__path__:
            monkeypatch.setattr(package, "__path__", [*package.__path__, str(folder)])
        made.append(f"{package.__name__}.{name}")

    yield write
    for name in made:
        sys.modules.pop(name, None)


def test_what_is_there() -> None:
    assert found(critics, Critic).keys() >= {"probe", "label", "constant", "shuffled", "column"}
    assert found(defences, Defence).keys() >= {
        "none",
        "constant-kl",
        "adaptive-kl",
        "filter",
        "reweight",
    }
    for package, base in ((critics, Critic), (defences, Defence)):
        for name, kind in found(package, base).items():
            assert name_of(kind()) == name


def test_adding_a_critic_is_adding_a_file(add: Add) -> None:
    assert "by-length" not in found(critics, Critic)
    add(critics, "by_length", CRITIC)
    assert "by-length" in found(critics, Critic)
    made = tyro.cli(choices(critics, Critic), args=["by-length", "--longest", "8"])
    assert name_of(made) == "by-length"
    chat = ChatModel("tiny", None, make_model("llama"), make_tokenizer())
    rows = examples({"prompt": prompt, "completion": "x"} for prompt in ("four", "sixsix"))
    np.testing.assert_array_equal(made.assess(rows, chat).s, [0.5, 0.75])


def test_adding_a_defence_is_adding_a_file(add: Add) -> None:
    with pytest.raises(SystemExit):
        tyro.cli(choices(defences, Defence), args=["half", "--share", "0.25"])
    add(defences, "half", DEFENCE)
    made = tyro.cli(choices(defences, Defence), args=["half", "--share", "0.25"])
    assert vars(made) == {"share": 0.25} and not made.needs_reference


def test_a_new_defence_is_in_the_help(add: Add, capsys: pytest.CaptureFixture[str]) -> None:
    def shown() -> str:
        with pytest.raises(SystemExit):
            tyro.cli(choices(defences, Defence), args=["--help"])
        return capsys.readouterr().out

    assert "half" not in shown()
    add(defences, "half", DEFENCE)
    assert "half" in shown()


@pytest.mark.parametrize(
    ("model", "experiment"),
    [
        ("miniature/llama", "mixed"),
        ("miniature/llama", "all-harmful"),
        ("realistic/aligned", "defences"),
    ],
)
def test_a_new_defence_is_compared_and_drawn(model: str, experiment: str, add: Add) -> None:
    config = CompareConfig(models=(model,), experiments=(experiment,), seeds=(1,))
    before = {run.name for run in grid.runs(config)}
    add(defences, "half", DEFENCE)
    (run,) = (run for run in grid.runs(config) if run.name not in before)
    assert run.arm.name == "half/probe" and run.arm.method.weights(torch.ones(1)).alpha == 0.5

    # In the figure of attack success and new task, and in the table, under its name.
    shares = [
        measures.share(metric, [True, False])
        for metric in ("attack_success", "new_task", "refusal")
    ]
    rows = [
        row
        for defence, critic in (("before", "none"), ("none", "none"), ("half", "probe"))
        for row in measures.evaluation_rows(
            shares,
            measures.Arm(
                model, defence, critic, run.attack, run.share, run.learning_rate, seed=run.seed
            ),
        )
    ]
    table = pd.DataFrame(map(asdict, rows))
    assert "half" in set(safety_utility.plotted(table)["defence"])
    assert "half, probe" in markdown(table)
    figure = safety_utility.draw(table)
    assert any("half, probe" in text.get_text() for text in figure.findobj(Text))


def test_files_that_are_no_plug_in(add: Add) -> None:
    add(critics, "_private", CRITIC)
    assert "private" not in str(found(critics, Critic).keys())
    add(critics, "none_at_all", "from regularize.critics import Critic\n")
    with pytest.raises(TypeError, match=r"critics\.none_at_all should define one Critic, not 0"):
        found(critics, Critic)


def test_a_file_of_two_plug_ins(add: Add) -> None:
    add(defences, "twice", DEFENCE + DEFENCE.replace("Half", "Other"))
    with pytest.raises(TypeError, match=r"defences\.twice should define one Defence, not 2"):
        found(defences, Defence)
