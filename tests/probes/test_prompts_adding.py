"""Sets that a test adds: one more file in the folder, read from the hub or generated."""

import sys
from pathlib import Path

import pytest

import probes.prompts
from probes.errors import InputError
from probes.prompts import describe, load, names
from tests.probes.test_prompts import hub_cache, write

__all__ = ["hub_cache"]


@pytest.fixture
def add_set(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """`add_set(name, code)`: one more file in the folder of sets."""
    folder = tmp_path / "more-sets"
    folder.mkdir()
    monkeypatch.setattr(probes.prompts, "__path__", [*probes.prompts.__path__, str(folder)])

    def add(name: str, code: str) -> None:
        imports = "from probes.prompts._named import NamedSet, Part, Split, text_of\n"
        (folder / f"{name}.py").write_text(f'"""A set called {name}."""\n{imports}{code}\n')
        monkeypatch.delitem(sys.modules, f"probes.prompts.{name}", raising=False)

    yield add
    for module in folder.glob("*.py"):
        sys.modules.pop(f"probes.prompts.{module.stem}", None)


def test_adding_a_set_is_adding_a_file(tmp_path: Path, add_set) -> None:
    with pytest.raises(InputError, match="neither a set nor a file"):
        load("zoo")
    copy = write(
        tmp_path / "zoo.csv", [{"animal": "cat", "bites": "no"}, {"animal": "asp", "bites": "yes"}]
    )
    add_set(
        "zoo",
        "from probes.prompts._named import one_of\n"
        "SET = NamedSet(hub='zoo/zoo', licence='MIT', citation='us', prompt=text_of('animal'),\n"
        "  splits={'all': Split(files=(Part('zoo.csv'),))}, \n"
        "  label=one_of('bites', {'no': 0, 'yes': 1}))",
    )
    assert "zoo" in names() and "A set called zoo." in describe()
    got = load(f"zoo={copy}")
    assert (got.texts, got.labels.tolist(), got.licence) == (["cat", "asp"], [0, 1], "MIT")
    write(copy, [{"animal": "cat", "bites": "maybe"}])
    with pytest.raises(InputError, match="line 2, field 'bites': 'maybe' is none of 'no', 'yes'"):
        load(f"zoo={copy}")


def test_generated_sets(add_set) -> None:
    add_set(
        "made_up",
        "from probes.prompts.rows import Prompt\n"
        "SPLITS = {'train': 'some', 'held-out': 'others'}\n"
        "def rows(split, seed):\n"
        "    texts = [f'{split} {seed} {i}' for i in range(4)]\n"
        "    return [Prompt.of(text, label=i % 2, source=split) for i, text in enumerate(texts)]",
    )
    got = load("made-up", seed=3)
    assert got.name == "made-up" and got.texts[0] == "train 3 0"
    assert load("made-up:held-out").name == "made-up:held-out"
    with pytest.raises(InputError, match="no split 'test'; it has: train, held-out"):
        load("made-up:test")
    with pytest.raises(InputError, match="knows its own columns"):
        load("made-up?group=x")


def test_the_miniature_language() -> None:
    from probes.prompts.miniature import SPLITS

    assert next(iter(SPLITS)) == "train", "what `miniature` alone stands for"
    got = load("miniature:look-alikes")
    assert got.name == "miniature:look-alikes" and 0.2 < got.labels.mean() < 0.8
    assert {prompt.source for prompt in got.prompts} == {got.name}


@pytest.mark.usefixtures("hub_cache")
def test_a_set_on_the_hub(tmp_path: Path, add_set) -> None:
    """Tables with their own labels, files without a header, and all splits of a set."""
    folder = tmp_path / "on-the-hub"
    folder.mkdir()
    (folder / "train.csv").write_text("NA\nfirst\n")
    (folder / "test.csv").write_text("second\n")
    add_set(
        "bare",
        f"SET = NamedSet(hub={str(folder)!r}, licence='MIT', citation='us', label=1,\n"
        "  splits={'all': Split(hub=(Part(''),))}, prompt=text_of('prompt'),\n"
        "  options={'names': ['prompt'], 'header': None})",
    )
    add_set(
        "halves",
        f"SET = NamedSet(hub={str(folder)!r}, licence='MIT', citation='us',\n"
        "  splits={'all': Split(hub=(Part('train', label=0), Part('test', label=1)))},\n"
        "  prompt=text_of('prompt'),\n"
        "  options={'names': ['prompt'], 'header': None, 'keep_default_na': False})",
    )
    harmless = write(tmp_path / "mine.csv", [{"prompt": "x", "label": 0}])
    with pytest.raises(InputError, match=r"row 1, field 'prompt': a text is needed.*None"):
        load(f"bare+{harmless}")  # what pandas makes of "NA", unless told otherwise
    assert load("halves").texts == ["NA", "first", "second"]
    assert load("halves").labels.tolist() == [0, 0, 1]
