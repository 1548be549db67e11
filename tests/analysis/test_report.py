"""The report as a page and as a command."""

import itertools
import json
import os
import re
import shlex
import shutil
import subprocess
import sys
from html.parser import HTMLParser
from pathlib import Path

import pytest
import tyro

from analysis import report, results
from analysis.report import examples
from analysis.report.cases import cases
from analysis.report.origin import command
from tests.analysis import synthetic
from tests.analysis import synthetic_sweep as made

ROOT = Path(__file__).parents[2]
VOID = {"meta", "link", "img"}


class Outline(HTMLParser):
    """What a strict reader sees: the tags in order, each closed in its turn; texts by tag."""

    def __init__(self, page):
        super().__init__()
        self.open, self.tags, self.texts = [], [], []
        self.feed(page)
        self.close()
        assert not self.open

    def handle_starttag(self, tag, attributes):
        self.tags.append((tag, dict(attributes)))
        if tag not in VOID:
            self.open.append(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, text):
        self.texts.append((self.open[-1] if self.open else "", " ".join(text.split())))

    def all(self, tag):
        return [attributes for name, attributes in self.tags if name == tag]

    def said(self, *tags):
        return " ".join(text for tag, text in self.texts if not tags or tag in tags)


def run(*arguments, **environment):
    return subprocess.run(
        [sys.executable, "-m", "analysis", *map(str, arguments)],
        cwd=ROOT,
        env={**os.environ, **environment},
        capture_output=True,
        text=True,
        check=False,
    )


@pytest.fixture(scope="module")
def full(tmp_path_factory):
    return made.write(tmp_path_factory.mktemp("full"))


@pytest.fixture(scope="module")
def page(full):
    return report.page(full)


@pytest.fixture
def no_figures(monkeypatch):
    """Drawing takes most of the time, and is tested elsewhere."""
    monkeypatch.setattr("analysis.report.pictures.pictures", lambda tables: [])


def test_the_page_stands_alone_and_a_prompt_stays_text(page):
    seen = Outline(page)
    assert not seen.all("script")
    assert all(one["src"].startswith("data:image/png;base64,") for one in seen.all("img"))
    assert [one["href"] for one in seen.all("link")] == ["data:,"]
    assert all(one["href"].startswith("#") for one in seen.all("a"))
    addresses = {value for _, one in seen.tags for name, value in one.items()
                 if name in ("src", "href", "action", "data", "poster", "srcset", "style")
                 or name.startswith("on")}  # fmt: skip
    assert all(value.startswith(("#", "data:")) for value in addresses)
    assert not re.search(r"@import|url\(", seen.said("style"))
    policy = seen.all("meta")[1]["content"]
    assert policy.startswith("default-src 'none'")
    # The positive control: the prompts are there, as the text that they are.
    assert made.NASTY.split("\n")[0] in seen.said("blockquote")


def test_the_order_and_the_outline(page):
    seen = Outline(page)
    assert [one["id"] for one in seen.all("section")] == [
        "verdict", "figures", "tables", "wrong", "leaks", "origin"]  # fmt: skip
    levels = [int(tag[1]) for tag, _ in seen.tags if re.fullmatch(r"h\d", tag)]
    assert levels[0] == 1
    assert levels.count(1) == 1
    assert all(later <= level + 1 for level, later in itertools.pairwise(levels))
    assert len(seen.all("caption")) == len(seen.all("table")) > 10
    assert all(one["alt"] for one in seen.all("img"))
    assert all("open" not in one for one in seen.all("details"))
    for title in ("AUROC", "Lead over the words", "Transfer", "Operating points", "Layer choice",
                  "Controls", "Calibration", "Causal effect", "Drift in fine-tuning"):  # fmt: skip
        assert title in seen.said("h3")
    assert "Not computed" not in seen.said()


@pytest.mark.parametrize("missing", [name for name in made.tables() if name != "scores"])
def test_a_table_that_is_missing_is_said_and_no_more(full, tmp_path, missing, no_figures):
    shutil.copytree(full, tmp_path / "some")
    for kind in ("csv", "parquet"):
        (tmp_path / "some" / f"{missing}.{kind}").unlink()
    seen = Outline(report.page(tmp_path / "some"))
    if missing == "prompts":
        assert "The text is not among the results." in seen.said("p")
        assert not seen.all("blockquote")
    elif missing == "leaks":  # config.json says that they were looked for
        assert "No pair of equal or nearly equal prompts was found." in seen.said("p")
    elif missing not in ("reliability", "cosines"):
        assert f"table {missing}" in seen.said("p", "li")


def test_the_worst_held_out_set_is_marked_and_named(page):
    seen = Outline(page)
    assert "worst .901" in seen.said("td").replace("\N{NO-BREAK SPACE}", " ")
    assert "The worst of 2 held-out sets is xstest: AUROC .901" in seen.said("p")


def test_the_surest_mistakes_are_those_of_the_frozen_threshold(full):
    tables = results.read_all(full)
    case = cases(tables, 0.05)[0]
    assert (case.fpr, case.operating[0].threshold) == (0.05, 0.5)
    alarms, misses = examples.wrong(case, tables).kinds
    risks = tables["risks"]
    above = risks["risk"] > 1 / (1 + 2.718281828459045**-0.5)
    wrong = {0: risks[above & (risks["label"] == 0)], 1: risks[~above & (risks["label"] == 1)]}
    assert alarms.title.startswith(f"{len(wrong[0])} false alarm")
    assert misses.title.startswith(f"{len(wrong[1])} misses")
    assert len(misses.examples) == min(10, len(wrong[1]))
    surest = wrong[1].sort_values("risk")["id"].head(10)
    assert [one.ids[0].split()[0] for one in misses.examples] == list(surest)
    # At another threshold other prompts are wrong.
    strict = examples.wrong(cases(tables, 0.01)[0], tables).kinds
    assert strict[1].title.startswith("31 misses") > misses.title.startswith("31 misses")


def test_at_most_ten_of_each_kind_and_long_texts_are_cut(full):
    tables = results.read_all(full)
    tables["operating"]["threshold"] = 50.0
    tables["prompts"]["text"] = "x" * 5000
    case = cases(tables, 0.01)[0]
    alarms, misses = examples.wrong(case, tables).kinds
    assert (len(alarms.examples), len(misses.examples)) == (0, 10)
    assert misses.title.startswith("300 misses")
    assert misses.examples[0].texts[0].endswith("(1000 characters more)")


def test_several_models_train_sets_and_positions(tmp_path, no_figures):
    rows = []
    for train in ("one", "two"):
        others = tuple({"one", "two", "far"} - {train})
        rows += synthetic.scores(models=("m", "n"), held_out=sorted(others), train_set=train)
    elsewhere = synthetic.frame(rows).assign(position="first-token")
    table = synthetic.frame(rows)
    import pandas as pd

    pd.concat([elsewhere, table]).to_csv(tmp_path / "scores.csv", index=False)
    seen = Outline(report.page(tmp_path))
    assert len(seen.all("article")) == 4
    assert "Spoken of here is resid_post at last-input-token" in seen.said("p")
    assert "trained on two" in seen.said("th")
    assert seen.said("td").count("worst") == 4


def test_equal_inputs_give_equal_bytes(tmp_path):
    made.write(tmp_path / "in", "scores", "operating", "causal", "leaks", "prompts", "risks")
    outs = [tmp_path / name for name in "ab"]
    for out, seed in zip(outs, "12", strict=True):
        done = run("report", "--results", tmp_path / "in", "--out", out / "r.html",
                   PYTHONHASHSEED=seed)  # fmt: skip
        assert done.returncode == 0, done.stderr
        assert done.stderr == ""
        assert done.stdout == f"report: {out / 'r.html'}\n"
    first, second = (out.joinpath("r.html").read_bytes() for out in outs)
    assert first == second
    assert b"data:image/png" in first
    assert [path.name for path in outs[0].iterdir()] == ["r.html"]


def test_the_page_lies_with_the_results_unless_told_otherwise(tmp_path, no_figures, capsys):
    made.write(tmp_path, "scores")
    report.main(report.ReportConfig((tmp_path,)))
    assert (tmp_path / "report.html").is_file()
    assert capsys.readouterr().out == f"report: {tmp_path / 'report.html'}\n"


def test_tables_of_another_command_stand_beside_the_sweeps(full, tmp_path, no_figures):
    made.write(tmp_path / "sweep", "scores", "risks")
    made.write(tmp_path / "causal", "causal")
    (tmp_path / "causal" / "config.json").write_text('{"add_at": "all", "n": 7}')
    seen = Outline(report.page(tmp_path / "sweep", tmp_path / "causal"))
    assert "python -m probes.causal_check --add-at all --n 7" in seen.said("pre")
    assert "20 random for probe" in seen.said("td")
    with pytest.raises(results.TableError, match="table scores, as a folder before it does"):
        report.page(tmp_path / "sweep", full)
    with pytest.raises(results.TableError, match="names no folder"):
        report.main(report.ReportConfig(()))


@pytest.mark.parametrize(("config", "message"), [
    ("[1", "config.json: no JSON"), ("[1]", "config.json: holds no JSON object"),
])  # fmt: skip
def test_a_broken_config_is_named(tmp_path, config, message):
    made.write(tmp_path, "scores")
    (tmp_path / "config.json").write_text(config)
    with pytest.raises(results.TableError, match=message):
        report.page(tmp_path)


def test_bad_input_is_a_message_and_code_2(tmp_path):
    made.write(tmp_path / "in", "risks")
    done = run("report", "--results", tmp_path / "in", "--out", tmp_path / "out.html")
    assert done.returncode == 2
    assert done.stderr.startswith(f"error: {tmp_path / 'in'}: holds no scores")
    assert "Traceback" not in done.stderr
    assert not (tmp_path / "out.html").exists()


def test_an_unwritable_page_is_an_error_of_the_system(tmp_path, no_figures):
    made.write(tmp_path / "in", "scores")
    with pytest.raises(OSError, match=str(tmp_path)):  # which the command says, with code 2
        report.main(report.ReportConfig((tmp_path / "in",), tmp_path))


def test_help_tells_of_the_report_and_the_old_form_still_draws():
    assert "analysis report --results" in run("--help").stdout
    assert "--results" in run("report", "--help").stdout


def test_the_command_can_be_pasted(page):
    from probes.layer_sweep import SweepConfig

    for config in (
        SweepConfig(),
        SweepConfig(models=("a b", "c'd"), train=("x;y",), remote=True, revision="v", C=(0.5,),
                    backend="nnsight", max_length=7, out=Path("runs/$HOME")),
    ):  # fmt: skip
        words = shlex.split(command(json.loads(config.to_json())))
        assert words[:3] == ["python", "-m", "probes.layer_sweep"]
        assert tyro.cli(SweepConfig, args=words[3:]) == config
    assert shlex.quote("mine's.jsonl") in Outline(page).said("pre")
    other = {"command": "a.b", "critic": {"path": "p q"}, "commit": "x"}
    assert command(other) == "python -m a.b --critic.path 'p q'"
    assert command({"seed": 0}) == ""  # of no command that is known


def test_commit_releases_and_hashes_are_there(page):
    said = Outline(page).said("dd", "td", "th")
    for word in ("0123abcd", "2.9", "8c" * 8, "f8" * 8):
        assert word in said


def test_style_and_template_are_files_of_the_package():
    folder = Path(report.__file__).parent
    assert {path.name for path in folder.iterdir()} >= {"page.html.j2", "style.css"}
