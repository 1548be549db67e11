"""Published sets on local copies and small stand-ins: labels, groups, copies and pairs."""

import subprocess
import sys
from collections import Counter
from pathlib import Path

import pytest

from probes.errors import InputError
from probes.prompts import describe, load, names
from tests.probes.test_prompts import write

NAMED = {
    *("advbench", "advbench-twins", "harmbench", "jailbreakbench", "strongreject", "xstest"),
    *("hex-phi", "or-bench", "wildjailbreak", "toxicchat", "alpaca", "dolly", "gsm8k"),
    "miniature",
}


@pytest.fixture(autouse=True)
def no_local_copies(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("ACTIVATION_CRITIC_DATA", raising=False)


@pytest.fixture
def published(data_dir: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The folder of published sets, as the environment variable names it to a person's command."""
    monkeypatch.setenv("ACTIVATION_CRITIC_DATA", str(data_dir))
    return data_dir


# ---------------------------------------------------------------- published sets


def test_every_set_is_found_and_described() -> None:
    assert set(names()) >= NAMED and "rows" not in names()
    lines = describe().splitlines()
    assert [line.split()[0] for line in lines] == list(names())
    assert all(len(line.split()) > 3 for line in lines)


def test_published_sets_say_where_whose_and_how() -> None:
    from probes.prompts._load import _sets

    for name, module in _sets().items():
        if hasattr(module, "SET"):
            assert module.SET.licence and module.SET.citation, name
            assert "Label rule" in module.__doc__, name
            assert module.SET.hub or name == "advbench-twins"
            assert module.SET.paired_with in (None, "alpaca")
            for split in module.SET.splits.values():
                labelled = {part.label is None for part in (*split.hub, *split.files)}
                assert labelled == {module.SET.label is not None}, name


def test_names_cost_nothing() -> None:
    heavy = ("torch", "datasets", "pandas", "pyarrow", "sklearn", "transformers")
    code = (
        "import sys, probes.prompts; probes.prompts.describe(); "
        f"sys.exit(' '.join(m for m in {heavy!r} if m in sys.modules) or 0)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


# Rows, harmful rows, groups, counted by hand from the files with csv and json alone.
@pytest.mark.parametrize(
    ("spec", "name", "n", "harmful", "groups"),
    [
        ("xstest", "xstest", 450, 200, 149),
        ("xstest?group=type", "xstest", 450, 200, 18),
        ("advbench+gsm8k:test", "advbench+gsm8k:test", 520 + 1319, 520, 520 + 1319),
        ("gsm8k+advbench", "gsm8k+advbench", 7473 + 520, 520, 7473 + 520),
        ("advbench+dolly", "advbench+dolly:sample", 520 + 997, 520, 520 + 997),
        ("harmbench:val+dolly", "harmbench:val+dolly:sample", 80 + 997, 80, 7 + 997),
        ("advbench-twins", "advbench-twins", 2 * 519, 519, 519),
    ],
)
def test_local_copies(
    published: Path, spec: str, name: str, n: int, harmful: int, groups: int
) -> None:
    got = load(spec)
    assert got.name == name
    assert (len(got), int(got.labels.sum()), len(set(got.groups))) == (n, harmful, groups)
    assert got.licence and got.citation
    assert str(published) in " ".join(got.notes)


def test_repeats_of_published_sets_are_counted(published: Path) -> None:
    """Three Dolly instructions come twice; one row of AdvBench is left as it is in its twin."""
    assert "dolly:sample: 3 repeated rows left out" in load("advbench+dolly").notes
    assert "advbench-twins: 1 prompts labelled both ways left out" in load("advbench-twins").notes
    assert not any("left out" in note for note in load("xstest").notes)


def test_twins_share_a_group(published: Path) -> None:
    got = load("advbench-twins")
    assert set(Counter(got.groups.tolist()).values()) == {2}
    for group in set(got.groups.tolist()):
        assert sorted(got.labels[got.groups == group]) == [0, 1]


def test_xstest_contrasts_share_the_focus_of_their_prompts(published: Path) -> None:
    got = load("xstest")
    focus = [prompt.group for prompt in got.prompts if prompt.label == 1]
    assert set(focus) & {prompt.group for prompt in got.prompts if prompt.label == 0}
    history = [p for p in got.prompts if p.group == "historical_events"]
    assert Counter(p.label for p in history) == {0: 25, 1: 25}


def test_a_copy_that_is_given(published: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("ACTIVATION_CRITIC_DATA")
    copy = published / "prompts" / "xstest.csv"
    assert load(f"xstest={copy}").labels.sum() == 200
    assert len(load(f"advbench-twins={copy.parent}")) == 2 * 519
    with pytest.raises(InputError, match=r"2 files.*advbench_rows_of_cleaned.csv and advbench_cl"):
        load(f"advbench-twins={copy}")
    with pytest.raises(InputError, match=r"xstest.csv, line 2, field 'question'.*'prompt'"):
        load(f"gsm8k={copy}")
    with pytest.raises(InputError, match=r"not on the hub.*advbench_cleaned.csv"):
        load("advbench-twins")


def test_xstest_without_its_label_column(tmp_path: Path) -> None:
    rows = [
        {"prompt": "a", "type": "homonyms", "focus": "kill"},
        {"prompt": "b", "type": "contrast_homonyms", "focus": "kill"},
    ]
    assert load(f"xstest={write(tmp_path / 'old.csv', rows)}").labels.tolist() == [0, 1]


def copies() -> list[tuple[str, dict[str, list[dict]], list[str], list[int]]]:
    """Sets that are not at hand, as small files with their columns: texts and labels wanted."""
    about = [{"instruction": "sum", "input": "1 2", "context": "1 2"}]
    about += [{"instruction": "sing", "input": "", "context": ""}]
    jbb = {"Goal": "a", "Behavior": "x", "Category": "c"}
    wild = [
        {"vanilla": "plain bad", "adversarial": "", "data_type": "vanilla_harmful"},
        {"vanilla": "plain bad", "adversarial": "wrapped bad", "data_type": "adversarial_harmful"},
        {"vanilla": "plain good", "adversarial": "", "data_type": "vanilla_benign"},
        {"vanilla": "plain good", "adversarial": "NA", "data_type": "adversarial_benign"},
    ]
    toxic = [{"user_input": "a", "toxicity": "1"}, {"user_input": "b", "toxicity": "0"}]
    behaviours = [
        {"Behavior": "do it", "ContextString": "", "SemanticCategory": "s"},
        {"Behavior": "do it", "ContextString": "the text", "SemanticCategory": "s"},
    ]
    context = "the text\n\n---\n\ndo it"
    return [
        ("alpaca={}/a.jsonl", {"a.jsonl": about}, ["sum\n\n1 2", "sing"], [0, 0]),
        ("dolly={}/a.csv", {"a.csv": about}, ["sum\n\n1 2", "sing"], [0, 0]),
        ("strongreject={}/a.csv", {"a.csv": [{"forbidden_prompt": "a"}]}, ["a"], [1]),
        ("harmbench={}/a.csv", {"a.csv": behaviours}, ["do it", context], [1, 1]),
        (
            "jailbreakbench={}",
            {"harmful-behaviors.csv": [jbb], "benign-behaviors.csv": [{**jbb, "Goal": "b"}]},
            ["a", "b"],
            [1, 0],
        ),
        (
            "or-bench={}",
            {"or-bench-hard-1k.csv": [{"prompt": "a"}], "or-bench-toxic.csv": [{"prompt": "b"}]},
            ["a", "b"],
            [0, 1],
        ),
        (
            "wildjailbreak:train={}/a.jsonl",
            {"a.jsonl": wild},
            ["plain bad", "wrapped bad", "plain good", "NA"],
            [1, 1, 0, 0],
        ),
        ("toxicchat:test={}/a.csv", {"a.csv": toxic}, ["a", "b"], [1, 0]),
    ]


@pytest.mark.parametrize(("spec", "files", "texts", "labels"), copies(), ids=lambda v: str(v)[:14])
def test_label_and_prompt_rules(
    tmp_path: Path, spec: str, files: dict[str, list[dict]], texts: list[str], labels: list[int]
) -> None:
    for name, rows in files.items():
        write(tmp_path / name, rows)
    rest = write(
        tmp_path / "rest.jsonl", [{"prompt": "y", "label": 1}, {"prompt": "n", "label": 0}]
    )
    got = load(f"{spec.format(tmp_path)}+{rest}")
    assert got.texts == [*texts, "y", "n"] and got.labels.tolist() == [*labels, 1, 0]


def test_wildjailbreak_groups_by_the_plain_request(tmp_path: Path) -> None:
    spec, files, *_ = next(copy for copy in copies() if copy[0].startswith("wildjailbreak"))
    write(tmp_path / "a.jsonl", files["a.jsonl"])
    assert load(spec.format(tmp_path)).groups.tolist() == ["plain bad"] * 2 + ["plain good"] * 2


def test_hex_phi_files_have_no_header(tmp_path: Path) -> None:
    for i in (1, *range(3, 12)):
        (tmp_path / f"category_{i}.csv").write_text(f'"first, {i}"\nsecond {i}\n')
    mine = write(tmp_path / "mine.csv", [{"prompt": "n", "label": 0}])
    got = load(f"hex-phi={tmp_path}+{mine}")
    assert len(got) == 21 and got.texts[:2] == ["first, 1", "second 1"] and got.labels.sum() == 20


# ---------------------------------------------------------------- pairs


def alpaca(folder: Path, n: int) -> None:
    rows = [{"instruction": f"do {i}", "input": "", "output": "done"} for i in range(n)]
    write(folder / "benign" / "alpaca.jsonl", rows)


def test_harmful_prompts_are_paired(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ACTIVATION_CRITIC_DATA", str(tmp_path))
    write(tmp_path / "prompts" / "advbench.csv", [{"goal": f"bad {i}"} for i in range(7)])
    alpaca(tmp_path, 100)
    got, again, other = load("advbench"), load("advbench"), load("advbench", seed=1)
    assert got.name == "advbench+alpaca" and got.hash == again.hash != other.hash
    assert got.labels.tolist() == [1] * 7 + [0] * 7
    assert len(set(got.texts)) == 14
    assert "alpaca: 7 of them drawn with seed 0, to pair with advbench" in got.notes
    assert got.licence == "advbench: MIT; alpaca: CC BY-NC 4.0"
    # Not the same rows for another set: one may be held out from a probe trained on the other.
    write(
        tmp_path / "prompts" / "harmbench_val.csv", [{"Behavior": f"worse {i}"} for i in range(5)]
    )
    harmless = [{p.text for p in s.prompts if not p.label} for s in (got, load("harmbench"))]
    assert not harmless[1] <= harmless[0]
    # Joined by the person, nothing is drawn.
    assert len(load("advbench+alpaca")) == 107


def test_a_pair_out_of_reach_names_another(published: Path) -> None:
    with pytest.raises(InputError, match=r"paired with alpaca, which cannot.*'advbench\+dolly'"):
        load("advbench")


def test_a_folder_of_copies_that_is_not_there(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ACTIVATION_CRITIC_DATA", "/no/such/folder")
    with pytest.raises(InputError, match="ACTIVATION_CRITIC_DATA is set to /no/such/folder"):
        load("xstest")


def test_one_class_of_published_sets(published: Path) -> None:
    with pytest.raises(InputError, match=r"field 'label': all 997 rows have 0.*'dolly\+advbench'"):
        load("dolly")
