"""Malformed prompts: each is one clear InputError that names file, row and field."""

import json
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from probes.errors import InputError
from probes.prompts import load

GOOD = b"prompt,label\none,1\ntwo,0\n"
GOOD_JSON = b'{"prompt": "one", "label": 1}\n{"prompt": "two", "label": 0}\n'


def chat(messages: object) -> bytes:
    """A JSONL file whose second row holds these messages."""
    good = [{"role": "user", "content": "hi"}]
    rows = [{"messages": good, "label": 1}, {"messages": messages, "label": 0}]
    return "\n".join(map(json.dumps, rows)).encode()


def user(content: object) -> dict[str, object]:
    return {"role": "user", "content": content}


# what, file's name, content, what the message must hold, the same content mended
CASES: list[tuple[str, str, bytes, list[str], bytes]] = [
    ("missing label", "x.csv", b"prompt,harm\none,1\ntwo,0\n",
     ["x.csv", "line 2", "field 'label'", "'prompt', 'harm'"], GOOD),
    ("missing prompt", "x.csv", b"text,label\none,1\ntwo,0\n",
     ["x.csv", "line 2", "field 'prompt'", "'text', 'label'"], GOOD),
    ("semicolons", "x.csv", b"prompt;label\none;1\ntwo;0\n",
     ["x.csv", "field 'prompt'", "separated by ';'"], GOOD),
    ("label 2", "x.csv", b"prompt,label\none,1\ntwo,2\n",
     ["x.csv", "line 3", "field 'label'", "'2'", "1 (harmful) or 0 (harmless)"], GOOD),
    ("label a word", "x.csv", b"prompt,label\none,yes\ntwo,0\n",
     ["x.csv", "line 2", "field 'label'", "'yes'"], GOOD),
    ("label empty", "x.csv", b"prompt,label\none,1\ntwo,\n",
     ["x.csv", "line 3", "field 'label'", "''"], GOOD),
    ("label 1.0", "x.csv", b"prompt,label\none,1.0\ntwo,0.0\n",
     ["x.csv", "line 2", "field 'label'", "'1.0'"], GOOD),
    ("label NaN", "x.jsonl", b'{"prompt": "one", "label": 1}\n{"prompt": "two", "label": NaN}\n',
     ["x.jsonl", "line 2", "field 'label'", "nan"], GOOD_JSON),
    ("label null", "x.jsonl", b'{"prompt": "one", "label": 1}\n{"prompt": "two", "label": null}\n',
     ["x.jsonl", "line 2", "field 'label'", "None"], GOOD_JSON),
    ("empty text", "x.csv", b"prompt,label\none,1\n,0\n",
     ["x.csv", "line 3", "field 'prompt'", "empty"], GOOD),
    ("white text", "x.csv", b'prompt,label\none,1\n" \t ",0\n',
     ["x.csv", "line 3", "field 'prompt'", "empty"], GOOD),
    ("after two lines of text", "x.csv", b'prompt,label\n"one\nmore\n",1\ntwo,0\n,0\n',
     ["x.csv", "line 6", "field 'prompt'", "empty"],
     b'prompt,label\n"one\nmore\n",1\ntwo,0\nx,0\n'),
    ("prompt a number", "x.jsonl", b'{"prompt": "one", "label": 1}\n{"prompt": 2, "label": 0}\n',
     ["x.jsonl", "line 2", "field 'prompt'", "a text is needed", "2"], GOOD_JSON),
    ("half a surrogate", "x.jsonl",
     b'{"prompt": "one", "label": 1}\n{"prompt": "x\\ud800", "label": 0}',
     ["x.jsonl", "line 2", "field 'prompt'", "character 2", "surrogate"], GOOD_JSON),
    ("one class", "x.csv", b"prompt,label\none,1\ntwo,1\n",
     ["x.csv", "field 'label'", "all 2 rows have 1", "x.csv+alpaca"], GOOD),
    ("other class", "x.csv", b"prompt,label\none,0\ntwo,0\n",
     ["x.csv", "field 'label'", "all 2 rows have 0", "x.csv+advbench"], GOOD),
    ("repeated row", "x.csv", GOOD + b"one,1\n",
     ["x.csv, line 4", "same prompt as", "x.csv, line 2"], GOOD + b"three,1\n"),
    ("contradiction", "x.csv", GOOD + b"two,1\n",
     ["x.csv, line 4", "same prompt as", "x.csv, line 3", "label 1 here and 0 there"],
     GOOD + b"three,1\n"),
    ("latin-1", "x.csv", "prompt,label\none,1\ncafé,0\n".encode("latin-1"),
     ["x.csv", "line 3", "byte 23", "0xe9", "not UTF-8"], "prompt,label\none,1\ncafé,0\n".encode()),
    ("UTF-16", "x.csv", GOOD.decode().encode("utf-16"),
     ["x.csv", "line 1", "byte 1 ", "UTF-16"], GOOD),
    ("latin-1 JSON", "x.jsonl", GOOD_JSON.replace(b"two", b"\xe9"),
     ["x.jsonl", "line 2", "0xe9", "not UTF-8"], GOOD_JSON),
    ("empty file", "x.csv", b"", ["x.csv", "empty"], GOOD),
    ("blank file", "x.jsonl", b"\n\n", ["x.jsonl", "empty"], GOOD_JSON),
    ("header only", "x.csv", b"prompt,label\n", ["x.csv", "no rows"], GOOD),
    ("too many fields", "x.csv", b"prompt,label\none, or more,1\ntwo,0\n",
     ["x.csv", "line 2", "3 fields", "the header 2", "needs quotes"],
     b'prompt,label\n"one, or more",1\ntwo,0\n'),
    ("too few fields", "x.csv", b"prompt,label\none,1\ntwo\n",
     ["x.csv", "line 3", "1 fields", "the header 2"], GOOD),
    ("open quote", "x.csv", b'prompt,label\none,1\n"two,0\nthree,0\n',
     ["x.csv", "line 3", "not CSV"], b'prompt,label\none,1\n"two",0\nthree,0\n'),
    ("column twice", "x.csv", b"prompt,label,label\none,1,1\ntwo,0,0\n",
     ["x.csv", "line 1", "'label' twice"], GOOD),
    ("broken JSON", "x.jsonl", b'{"prompt": "one", "label": 1}\n\n{"prompt": "two", "label": 0\n',
     ["x.jsonl", "line 3", "column 29", "not JSON"], GOOD_JSON),
    ("JSON list", "x.jsonl", b'[{"prompt": "one", "label": 1}]\n',
     ["x.jsonl", "line 1", "JSON object", "a list"], GOOD_JSON),
    ("a field lost on the way", "x.jsonl", b'{"prompt": "one", "label": 1}\n{"prompt": "two"}\n',
     ["x.jsonl", "line 2", "field 'label'", "'prompt'"], GOOD_JSON),
    ("prompt and messages", "x.jsonl", b'{"prompt": "one", "messages": [], "label": 1}\n',
     ["x.jsonl", "line 1", "both", "?prompt=prompt"], GOOD_JSON),
    ("group a list", "x.jsonl", GOOD_JSON.replace(b"}", b', "group": ["g"]}'),
     ["x.jsonl", "line 1", "field 'group'", "['g']"], GOOD_JSON.replace(b"}", b', "group": 7}')),
    ("no messages", "x.jsonl", chat([]), ["x.jsonl", "line 2", "field 'messages'", "[]"],
     chat([user("yes")])),
    ("messages not JSON", "x.csv", b'messages,label\n"[{]",1\n',
     ["x.csv", "line 2", "field 'messages'", "not JSON"],
     b'messages,label\n"[{""role"": ""user"", ""content"": ""a""}]",1\n'
     b'"[{""role"": ""user"", ""content"": ""b""}]",0\n'),
    ("unknown role", "x.jsonl", chat([{"role": "human", "content": "a"}]),
     ["x.jsonl", "line 2", "field 'messages', message 1", "'human'", "system, user, assistant"],
     chat([user("a")])),
    ("role a list", "x.jsonl", chat([{"role": ["user"], "content": "a"}]),
     ["x.jsonl", "line 2", "message 1", "['user']"], chat([user("a")])),
    ("no content", "x.jsonl", chat([user("a"), {"role": "user"}]),
     ["x.jsonl", "line 2", "message 2", '"content"'], chat([user("a"), user("b")])),
    ("content of parts", "x.jsonl", chat([user([{"type": "text", "text": "a"}])]),
     ["x.jsonl", "line 2", "message 1, content", "a text is needed"], chat([user("a")])),
    ("the assistant's last word", "x.jsonl",
     chat([user("a"), {"role": "assistant", "content": "b"}]),
     ["x.jsonl", "line 2", "field 'messages'", "the assistant's"], chat([user("a")])),
    ("not Parquet", "x.parquet", GOOD, ["x.parquet", "not a readable Parquet file"], b""),
]  # fmt: skip


@pytest.mark.parametrize(
    ("name", "content", "wanted", "mended"), [case[1:] for case in CASES], ids=[c[0] for c in CASES]
)
def test_a_malformed_file(
    tmp_path: Path, name: str, content: bytes, wanted: list[str], mended: bytes
) -> None:
    path = tmp_path / name
    path.write_bytes(content)
    with pytest.raises(InputError) as caught:
        load(str(path))
    message = str(caught.value)
    assert not [part for part in wanted if part not in message], message
    assert len(message.replace(str(path), "")) < 300 and "\n" not in message
    if mended:  # the file was wrong in this alone
        path.write_bytes(mended)
        assert load(str(path)).labels.min() == 0


@pytest.mark.parametrize(
    ("column", "values", "wanted"),
    [
        ("prompt", ["a", None], "row 2, field 'prompt'.*None"),
        ("prompt", [b"a", b"b"], "row 1, field 'prompt'.*b'a'"),
        ("label", [1, None], "row 2, field 'label'.*None"),
        ("label", [1.0, 0.0], "row 1, field 'label'.*1.0"),
        ("label", None, "row 1, field 'label'.*'prompt'"),
    ],
)
def test_a_malformed_parquet_file(
    tmp_path: Path, column: str, values: list[object] | None, wanted: str
) -> None:
    columns = {"prompt": ["a", "b"], "label": [1, 0]}
    path = tmp_path / "x.parquet"
    pq.write_table(pa.table(columns), path)
    assert load(str(path)).labels.tolist() == [1, 0]
    bad = {k: v for k, v in {**columns, column: values}.items() if v is not None}
    pq.write_table(pa.table(bad), path)
    with pytest.raises(InputError, match=f"x.parquet, {wanted}"):
        load(str(path))


@pytest.mark.parametrize(
    ("spec", "wanted"),
    [
        ("", "a source is missing"),
        ("xstest+", "a source is missing"),
        ("xtest", "neither a set nor a file.*Did you mean xstest.*advbench"),
        ("{}/mime.csv", r"mime.csv: there is no such file. Did you mean .*mine.csv\?"),
        ("{}/no/mine.csv", "no such file"),
        ("{}", "is a folder"),
        ("{}/mine.xlsx", "ending in '.xlsx' cannot be read, only .csv, .tsv, .jsonl, .parquet"),
        ("{}/mine.csv?colour=red", "'colour=red' is not field=column.*prompt, messages, label"),
        ("{}/mine.csv?prompt", "'prompt' is not field=column"),
        ("{}/mine.csv?prompt=a&messages=b", "for prompt or for messages, not both"),
        ("{}/mine.csv?group=topic", "mine.csv, line 2, field 'topic'.*'prompt', 'label'"),
        ("{}/mine.csv?label=2", "field '2': there is no such field"),
        ("xstest:test", "xstest has no split 'test'; it has: train"),
        ("xstest?label=type", "knows its own columns: only 'group' and 'category'"),
        ("xstest={}/none.csv", "none.csv: there is no such file"),
        ("jailbreakbench={}", "harmful-behaviors.csv: there is no such file"),
        ("hub:", "write hub:org/name"),
        ("hub:a/b:c:d:e", "write hub:org/name"),
    ],
)
def test_a_malformed_spec(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, spec: str, wanted: str
) -> None:
    monkeypatch.delenv("ACTIVATION_CRITIC_DATA", raising=False)
    (tmp_path / "mine.csv").write_bytes(GOOD)
    assert len(load(str(tmp_path / "mine.csv"))) == 2
    with pytest.raises(InputError, match=wanted):
        load(spec.format(tmp_path))


def test_a_prompt_of_two_files_with_two_labels(tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_bytes(GOOD)
    (tmp_path / "b.csv").write_bytes(b"prompt,label\nthree,1\ntwo,1\n")
    with pytest.raises(
        InputError, match=r"b.csv, line 3: the same prompt as .*a.csv, line 3, with"
    ):
        load(f"{tmp_path}/a.csv+{tmp_path}/b.csv")


def test_a_long_text_is_not_thrown_at_the_reader(tmp_path: Path) -> None:
    path = tmp_path / "x.jsonl"
    path.write_text(json.dumps({"prompt": ["secret " * 1000], "label": 1}))
    with pytest.raises(InputError) as caught:
        load(str(path))
    assert len(str(caught.value)) - len(str(path)) < 150
