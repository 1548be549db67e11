"""Prompts, and a person's own: files, a hub data set (as a local folder), joins of them."""

import csv
import json
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from probes.errors import InputError
from probes.prompts import Prompt, PromptSet, load


@pytest.fixture
def hub_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """`datasets` writes what it prepares into the test's own folder."""
    import datasets

    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    monkeypatch.setattr(datasets.config, "HF_MODULES_CACHE", tmp_path / "modules")


def write(path: Path, rows: list[dict]) -> Path:
    """The rows as the suffix says, by the standard library and pyarrow."""
    path.parent.mkdir(parents=True, exist_ok=True)
    if path.suffix == ".parquet":
        pq.write_table(pa.Table.from_pylist(rows), path)
    elif path.suffix == ".jsonl":
        lines = (json.dumps(row, ensure_ascii=False) for row in rows)
        path.write_text("\n".join(lines), encoding="utf-8", newline="")
    else:
        with path.open("w", encoding="utf-8", newline="") as file:
            writer = csv.DictWriter(file, list(rows[0]))
            writer.writeheader()
            writer.writerows(rows)
    return path


ROWS = [
    {"prompt": "open the gate", "label": 1, "group": "gate"},
    {"prompt": "paint the gate", "label": 0, "group": "gate"},
    {"prompt": "NA", "label": 0, "group": ""},
    {"prompt": "007", "label": 1, "group": ""},
]


# ---------------------------------------------------------------- prompts and sets


def test_the_id_is_the_chat_alone() -> None:
    one = Prompt.of("hello", label=1, source="a", group="g")
    same = Prompt.of([{"role": "user", "content": "hello"}], label=0, source="b")
    other = Prompt.of([{"role": "system", "content": "hello"}, *same.messages], label=0, source="b")
    assert one.id == same.id != other.id
    assert (one.group, same.group, len(one.id)) == ("g", same.id, 16)
    assert int(one.id, 16) >= 0


def test_the_text_is_what_the_user_said() -> None:
    chat = [("system", "be kind"), ("user", "one"), ("assistant", "yes"), ("user", "two")]
    messages = [{"role": role, "content": content} for role, content in chat]
    assert Prompt.of(messages, label=0, source="s").text == "one\ntwo"


def test_the_hash_sees_order_label_and_group() -> None:
    a, b = (Prompt.of(text, label=0, source="s") for text in "ab")
    other_label = Prompt.of("a", label=1, source="s")
    other_group = Prompt.of("a", label=0, source="s", group="g")
    other_source = Prompt.of("a", label=0, source="t")
    rows = [(a, b), (b, a), (other_label, b), (other_group, b), (a,)]
    hashes = [PromptSet("n", row).hash for row in rows]
    assert len(set(hashes)) == len(rows)
    assert PromptSet("m", (other_source, b), notes=("n",)).hash == hashes[0]


def test_arrays_of_a_set(tmp_path: Path) -> None:
    got = load(str(write(tmp_path / "mine.csv", ROWS)))
    assert got.name == "mine" and len(got) == 4
    assert got.texts == ["open the gate", "paint the gate", "NA", "007"]
    np.testing.assert_array_equal(got.labels, [1, 0, 0, 1])
    assert got.labels.dtype == np.int64
    assert got.groups[0] == got.groups[1] == "gate"
    assert got.groups[2] == got.prompts[2].id, "an empty cell is no group"
    assert got.messages[3] == ({"role": "user", "content": "007"},)
    assert {prompt.source for prompt in got.prompts} == {"mine"}


# ---------------------------------------------------------------- a person's own files


@pytest.mark.parametrize("suffix", ["csv", "tsv", "jsonl", "parquet"])
def test_columns_by_other_names(tmp_path: Path, suffix: str) -> None:
    rows = [{"question": "a", "harm": 1, "a&b": "x"}, {"question": "b", "harm": 0, "a&b": "x"}]
    path = tmp_path / f"odd.{suffix}"
    if suffix == "tsv":
        path.write_text("question\tharm\ta&b\na\t1\tx\nb\t0\tx\n")
    else:
        write(path, rows)
    got = load(f"{path}?prompt=question&label=harm&group=a%26b&source=a%26b")
    assert (got.texts, got.labels.tolist(), got.groups.tolist()) == (["a", "b"], [1, 0], ["x", "x"])
    assert got.prompts[0].source == "x"


def test_a_constant_label_and_a_join(tmp_path: Path) -> None:
    bad = tmp_path / "bad.jsonl"
    bad.write_text('{"prompt": "a"}\n')
    good = tmp_path / "good.jsonl"
    good.write_text('{"prompt": "b"}\n\n{"prompt": "c"}\n')
    got = load(f"{bad}?label=1+{good}?label=0")
    assert (got.name, got.texts, got.labels.tolist()) == ("bad+good", ["a", "b", "c"], [1, 0, 0])


def test_a_file_whose_name_holds_a_plus(tmp_path: Path) -> None:
    assert len(load(str(write(tmp_path / "a+b.csv", ROWS)))) == 4


@pytest.mark.parametrize("label", ["1", "true", "True", True, 1])
def test_labels_that_count_as_harmful(tmp_path: Path, label: object) -> None:
    rows = [{"prompt": "a", "label": label}, {"prompt": "b", "label": type(label)(0)}]
    if isinstance(label, str):
        rows[1]["label"] = {"1": "0", "true": "false", "True": "False"}[label]
    assert load(str(write(tmp_path / "x.jsonl", rows))).labels.tolist() == [1, 0]


def test_chats_in_every_format(tmp_path: Path) -> None:
    chats = [[{"role": "user", "content": text}] for text in "ab"]
    as_json = [{"messages": json.dumps(chat), "label": i} for i, chat in enumerate(chats)]
    as_list = [{"messages": chat, "label": i} for i, chat in enumerate(chats)]
    loaded = [
        load(str(write(tmp_path / "x.csv", as_json))),
        load(str(write(tmp_path / "x.jsonl", as_list))),
        load(str(write(tmp_path / "x.parquet", as_list))),
    ]
    assert {got.hash for got in loaded} == {loaded[0].hash} and loaded[0].texts == ["a", "b"]


def test_byte_order_mark_and_windows_line_ends(tmp_path: Path) -> None:
    path = tmp_path / "x.csv"
    path.write_bytes('\ufeffprompt,label\r\n"two\r\nlines",1\r\nb,0\r\n'.encode())
    assert load(str(path)).texts == ["two\r\nlines", "b"]
    path = tmp_path / "x.jsonl"
    path.write_bytes(
        '\ufeff{"prompt": "a\u2028b", "label": 1}\r\n{"prompt": "b", "label": 0}'.encode()
    )
    assert load(str(path)).texts == ["a\u2028b", "b"]


TEXTS = st.text(st.characters(exclude_categories=["Cs"]), min_size=1).filter(str.strip)


@settings(max_examples=60, deadline=None)
@given(st.lists(TEXTS, min_size=2, max_size=6, unique=True), st.data())
def test_three_formats_read_back_alike(
    tmp_path_factory: pytest.TempPathFactory, texts: list[str], data: st.DataObject
) -> None:
    labels = data.draw(st.lists(st.integers(0, 1), min_size=len(texts), max_size=len(texts)))
    labels[:2] = [0, 1]
    rows = [{"prompt": text, "label": label} for text, label in zip(texts, labels, strict=True)]
    folder = tmp_path_factory.mktemp("formats")
    for suffix in ("csv", "jsonl", "parquet"):
        got = load(str(write(folder / f"x.{suffix}", rows)))
        assert got.texts == texts and got.labels.tolist() == labels


# ---------------------------------------------------------------- the hub, as local folders


@pytest.mark.usefixtures("hub_cache")
class TestHub:
    def test_splits_and_columns(self, tmp_path: Path) -> None:
        folder = tmp_path / "set"
        write(folder / "train.csv", [{"q": "a", "y": 1}, {"q": "b", "y": 0}])
        write(folder / "test.csv", [{"q": "c", "y": 1}, {"q": "d", "y": 0}])
        got = load(f"hub:{folder}:test?prompt=q&label=y")
        assert got.texts == ["c", "d"] and got.labels.tolist() == [1, 0]
        with pytest.raises(InputError, match="name a split of: train, test"):
            load(f"hub:{folder}?prompt=q&label=y")
        with pytest.raises(InputError, match=r"row 1, field 'prompt'.*'q', 'y'"):
            load(f"hub:{folder}:test")
        with pytest.raises(InputError, match="name a split of: train, test"):
            load(f"hub:{folder}:valid?prompt=q&label=y")

    def test_configurations(self, tmp_path: Path) -> None:
        folder = tmp_path / "set"
        for config in ("easy", "hard"):
            rows = [{"prompt": f"{config} a", "label": 1}, {"prompt": f"{config} b", "label": 0}]
            write(folder / config / "train.jsonl", rows)
        configs = "".join(
            f"- config_name: {c}\n  data_files: {c}/*.jsonl\n" for c in ("easy", "hard")
        )
        (folder / "README.md").write_text(f"---\nconfigs:\n{configs}---\n")
        assert load(f"hub:{folder}:hard:train").texts == ["hard a", "hard b"]
        assert load(f"hub:{folder}:hard").texts == ["hard a", "hard b"]
        with pytest.raises(InputError, match="name a configuration of: easy, hard"):
            load(f"hub:{folder}")
        with pytest.raises(InputError, match="name a configuration of: easy, hard"):
            load(f"hub:{folder}:soft:train")

    def test_out_of_reach(self) -> None:
        with pytest.raises(InputError, match=r"hub:no-such-org/no-such-set cannot be loaded: .+"):
            load("hub:no-such-org/no-such-set")
