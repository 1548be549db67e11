"""A critic or a defence is added by adding a file."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
import tyro

from probes.models import ChatModel
from regularize import critics, defences
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
