"""Folders of files as benchmarks: what they may look like, what is refused and how, and a comparison on one."""

from __future__ import annotations

import json
import logging
import re
from pathlib import Path

import pytest

from evaluation import benchmarks
from evaluation.benchmarks import folders
from evaluation.benchmarks.folders import read_folder, register_folder
from evaluation.benchmarks.rows import LARGEST_TEXT
from evaluation.plugins import load_plugins
from evaluation.spec import Unusable
from tests.evaluation.tiny import make_model, make_suite, measured, svdbench

GOOD = {
    "train.csv": 'text,label\ngood film,pos\n"bad, film",neg\n',
    "validation.tsv": 'label\ttext\nneg\tan "awful film\n',
    "test.jsonl": '{"text": "fine\u2028film", "label": "pos", "more": [1]}\n\n{"text": "no film", "label": "neg"}\n',
}


def written(folder: Path, files: dict[str, str | bytes]) -> Path:
    folder.mkdir(exist_ok=True)
    for name, content in files.items():
        (folder / name).write_bytes(content if isinstance(content, bytes) else content.encode())
    return folder


def read(folder: Path, **files: str | bytes):
    """The good folder with some files changed; ``train_csv`` is train.csv, an empty one is not there."""
    changed = GOOD | {name.replace("_", "."): content for name, content in files.items()}
    return read_folder(written(folder, {name: content for name, content in changed.items() if content}), "data:x")


def test_three_formats(tmp_path):
    made = read(tmp_path)
    assert (made.labels, made.kind, made.metric) == (("neg", "pos"), "classification", "accuracy")
    assert {(e.text, e.label) for e in made.train} == {("good film", 1), ("bad, film", 0)}
    assert [(e.text, e.label) for e in made.validation] == [('an "awful film', 0)]
    assert {(e.text, e.label) for e in made.test} == {("fine\u2028film", 1), ("no film", 0)}


def test_a_byte_order_mark_and_lines_of_windows(tmp_path):
    made = read(tmp_path, train_csv=b"\xef\xbb\xbftext,label\r\ngood film,pos\r\nbad film,neg\r\n")
    assert {e.text for e in made.train} == {"good film", "bad film"}


@pytest.mark.parametrize("name", ["text2", "text_pair"])
def test_pairs(tmp_path, name):
    table = "text,{},label\n{},{},1\n{},{},2\n"
    made = read(
        tmp_path,
        train_csv=table.format(name, *"abcd"),
        validation_tsv="",
        validation_csv=table.format(name, *"efgh"),
        test_jsonl=json.dumps({"text": "q", name: "p", "label": 2}),
    )
    assert {(e.text, e.text_pair) for e in made.train} == {("a", "b"), ("c", "d")}
    assert (made.labels, made.test[0].text_pair, made.test[0].label) == (("1", "2"), "p", 1)


@pytest.mark.parametrize(
    ("column", "numbers", "kind"),
    [
        ("label", "0.5 -1 2 3", "regression"),
        ("label", "0 1 1 0", "classification"),
        ("label", "0 1.0 1 0.5", "regression"),
        ("target", "0 1 1 0", "regression"),
        ("label", "a 1.5 a 1.5", "classification"),
    ],
)
def test_numbers_with_a_fraction_or_a_target_mean_regression(tmp_path, column, numbers, kind):
    a, b, c, d = numbers.split()
    made = read(
        tmp_path,
        train_csv=f"text,{column}\nk,{a}\nl,{b}\n",
        validation_tsv=f"text\t{column}\nm\t{c}\n",
        test_jsonl=f'{{"text": "n", "{column}": {d}}}',
    )
    assert made.kind == kind
    if kind == "regression":
        found = {e.text: e.label for e in (*made.train, *made.validation, *made.test)}
        assert found == dict(zip("klmn", map(float, numbers.split()), strict=True))


def test_a_text_of_a_later_split_is_left_out_of_an_earlier_one(tmp_path, caplog):
    caplog.set_level(logging.INFO, "svdbench")
    made = read(
        tmp_path, train_csv='text,label\ngood film,pos\nbad film,neg\nNo  FILM,neg\nAn "awful film,pos\nbad film,pos\n'
    )
    assert sorted(e.text for e in made.train) == ["bad film", "bad film", "good film"]  # within a split all stay
    assert len({e.id for e in made.train}) == 3
    assert "left out of train, as their text is in a later split too: 2 rows" in caplog.text
    with pytest.raises(Unusable, match=r"validation\.tsv: there is no row which is not in a later split"):
        read(tmp_path, validation_tsv="text\tlabel\nNo film\tneg\n")


def test_the_first_rows_are_a_sample_however_the_file_is_sorted(tmp_path):
    rows = [f"{label} film {i % 90},{label}" for label in ("neg", "pos") for i in range(100)]
    made = read(tmp_path, train_csv="\n".join(["text,label", *rows]))
    assert 10 <= sum(example.label for example in made.train[:40]) <= 30
    assert len({example.text for example in made.train[:10]}) == 10  # copies of a text are not side by side
    again = read(tmp_path, train_csv="\n".join(["text,label", *reversed(rows)]))
    assert again == made
    assert again.digest == made.digest


def test_copies_of_a_text_under_two_labels_do_not_depend_on_their_order(tmp_path):
    rows = ["Good film,pos", "good film,neg", "good film,pos"]
    made = [read(tmp_path, train_csv="\n".join(["text,label", *order])) for order in (rows, rows[::-1])]
    assert made[0] == made[1]


@pytest.mark.parametrize(
    ("one", "other", "same"),
    [
        ("great :)", "great :(", False),
        ("so good \N{GRINNING FACE}", "so good \N{CRYING FACE}", False),
        ("¿Qué?", "¿Que?", False),
        ("\u0915\u0940", "\u0915\u0941", False),  # Devanagari: the vowels are marks
        ("No.", "No?", False),
        ("caf\u00e9", "CAFE\u0301", True),
        ("Stra\u00dfe", "STRASSE", True),
        ("two  words", " two\u00a0words", True),
    ],
)
def test_what_is_the_same_text(tmp_path, one, other, same):
    made = read(
        tmp_path,
        train_csv=f"text,label\n{one},pos\nx,neg\ny,pos\n",
        test_jsonl=json.dumps({"text": other, "label": "pos"}),
    )
    assert (one in {example.text for example in made.train}) is not same


@pytest.mark.parametrize(
    ("files", "message"),
    [
        ({"test_jsonl": ""}, "has no file test.csv, test.tsv or test.jsonl"),
        ({"train_tsv": "text\tlabel\n"}, "has train.csv and train.tsv: leave one"),
        ({"train_csv": "texts,label\na,b\n"}, "train.csv, row 1: expected `text`, perhaps .*, found texts, label"),
        ({"train_csv": "text,label,target\na,b,c\n"}, "row 1: expected `text`"),
        ({"train_csv": "text,text2,text_pair,label\na,b,c,d\n"}, "row 1: expected `text`"),
        ({"train_csv": "text,text,label\na,b,c\n"}, "two columns have the same name"),
        ({"train_csv": "text,label\na,b\nc\n"}, "row 2: expected 2 fields as in the heading, found 1"),
        ({"train_csv": "text,label\na,b\n ,b\n"}, "row 2, text: expected a text, found ' '"),
        ({"train_csv": "text,label\na,b\nc,\n"}, "row 2, label: expected a class or a number, found ''"),
        ({"train_csv": "text,label\na,1.5\nb,NaN\n"}, "row 2, label: expected a class or a finite number, found 'NaN'"),
        ({"train_csv": "text,label\na,1.5\nb,-inf\n"}, "row 2, label: expected a class or a finite number"),
        ({"train_csv": "text,label\na,b\nc,b\n"}, "expected two classes or more, found only 'b'"),
        ({"train_csv": "text,label\n"}, "train.csv: there is no row"),
        (
            {"train_csv": "text,text2,label\na,b,pos\nc,d,neg\n"},
            r"validation.tsv, row 1: expected a second text as in .*train.csv, row 1: name it `text2` in all",
        ),
        (
            {"test_jsonl": '{"text": "a", "txet2": "c", "label": "pos"}\n{"text": "a", "text2": "c", "label": "pos"}'},
            r"train.csv, row 1: expected a second text as in .*test.jsonl, row 2",
        ),
        ({"train_csv": "text,target\na,1\nb,2\n"}, "`target` in some rows, `label` in others"),
        ({"train_csv": 'text,label\n"a,b\n'}, "row 1: not CSV"),
        ({"train_csv": b"text,label\na,b\nc\xff,d\n"}, "train.csv, line 3: expected UTF-8, found the byte 0xff"),
        (
            {"train_csv": f"text,label\n{'x' * (LARGEST_TEXT + 1)},b\n"},
            "expected at most 100,000 characters, found 100,001",
        ),
        ({"train_csv": f"text,label\n{'x' * 200_000},b\n"}, r"row 1: not CSV \(field larger"),
        (
            {"test_jsonl": '{"text": "a", "label": "neutral"}'},
            "test.jsonl, row 1: expected a class which train has, found 'neutral'",
        ),
        ({"test_jsonl": '{"text": "a", "label": NaN}'}, "row 1: not JSON .NaN is not a number"),
        ({"test_jsonl": '{"text": "a", "label": null}'}, "row 1, label: expected a class"),
        ({"test_jsonl": '{"text": 3, "label": "pos"}'}, "row 1, text: expected a text, found '3'"),
        ({"test_jsonl": '["a", "pos"]'}, "row 1: expected an object"),
        (
            {"test_jsonl": r'{"text": "a \ud800", "label": "pos"}'},
            r"jsonl, row 1: '\\ud800' is half a character: write",
        ),
        ({"test_jsonl": r'{"text": "a", "label": "pos", "\uDFFF": 1}'}, r"jsonl, row 1: '\\udfff' is half a character"),
        ({"test_jsonl": "[" * 100_000}, "row 1: not JSON"),
    ],
)
def test_what_is_refused_and_where(tmp_path, files, message):
    with pytest.raises(Unusable, match=message) as refused:
        read(tmp_path, **files)
    assert len(str(refused.value).splitlines()) == 1


def labelled(folder: Path, in_table: str, in_json: str):
    """A good folder with one label of a table and one of JSON, as they are written."""
    return read(
        folder,
        train_csv=f"text,label\na,{in_table}\nb,2\n",
        validation_tsv="text\tlabel\nc\t2\n",
        test_jsonl=f'{{"text": "d \\ud83d\\ude00", "label": {in_json}}}',
    )


@pytest.mark.parametrize(
    ("in_table", "in_json"), [("1", "1"), ("1", '"1"'), ("1.0", "1.0"), ("true", "true"), ("1e2", "1e2")]
)
def test_a_label_is_its_text(tmp_path, in_table, in_json):
    made = labelled(tmp_path, in_table, in_json)
    assert (set(made.labels), made.labels[made.test[0].label]) == ({in_table, "2"}, in_table)
    assert made.test[0].text == "d \N{GRINNING FACE}"


@pytest.mark.parametrize(
    ("in_table", "in_json"),
    [("1", "1.0"), ("1.0", "1"), ("1", "true"), ("True", "true"), ("0", '"False"'), ("10", "1e1")],
)
def test_two_texts_of_one_number_or_truth_are_refused(tmp_path, in_table, in_json):
    said = f"test.jsonl, row 1: .* and '{in_table}' .*train.csv, row 1. would be two classes: write one of them"
    with pytest.raises(Unusable, match=said) as refused:
        labelled(tmp_path, in_table, in_json)
    assert len(str(refused.value).splitlines()) == 1


def test_targets_that_are_no_numbers_or_all_the_same(tmp_path):
    table = "text,target\na,{}\nb,2\n"
    rest = {"validation_tsv": "text\ttarget\nc\t1\n", "test_jsonl": '{"text": "d", "target": 1}'}
    with pytest.raises(Unusable, match=r"row 1: expected a number from .*, found 'high'"):
        read(tmp_path, train_csv=table.format("high"), **rest)
    for number in ("1e200", "-1e999", "1_0"):
        with pytest.raises(Unusable, match=f"train.csv, row 1: expected a number from .*, found '{number}'"):
            read(tmp_path, train_csv=table.format(number), **rest)
    for number in ("nan", "Infinity"):
        with pytest.raises(Unusable, match=f"train.csv, row 1, target: expected .* finite number, found '{number}'"):
            read(tmp_path, train_csv=table.format(number), **rest)
    with pytest.raises(Unusable, match="all numbers are the same"):
        read(tmp_path, train_csv=table.format("2"), **rest)


@pytest.fixture
def registry(monkeypatch):
    monkeypatch.setattr(benchmarks.base, "_LOADERS", dict(benchmarks.base._LOADERS))
    monkeypatch.setattr(folders, "_folders", {})


@pytest.mark.usefixtures("registry")
def test_its_name_is_the_folders_and_its_digest_the_contents(tmp_path):
    one = written(tmp_path / "my data", GOOD)
    assert register_folder(one) == "data:my_data"
    assert register_folder(one) == "data:my_data"  # once more, as every worker does
    (tmp_path / "other").mkdir()
    two = written(tmp_path / "other" / "my data", GOOD)
    with pytest.raises(Unusable, match="two folders of data are called my data: rename one"):
        register_folder(two)
    assert read_folder(one, "a").digest == read_folder(two, "b").digest
    written(two, {"test.jsonl": '{"text": "fine", "label": "pos"}'})
    assert read_folder(one, "a").digest != read_folder(two, "b").digest


@pytest.mark.usefixtures("registry")
def test_a_folder_is_a_plugin(tmp_path):
    assert load_plugins([written(tmp_path / "reviews", GOOD)]) == []
    assert benchmarks.load_benchmark("data:reviews").labels == ("neg", "pos")
    with pytest.raises(Unusable, match=re.escape("unknown benchmark 'data:others': give its folder with --data")):
        benchmarks.load_benchmark("data:others")
    with pytest.raises(Unusable, match="is not a folder: give one with train, validation and test as"):
        register_folder(tmp_path / "nowhere")
    with pytest.raises(Unusable, match="has no file train"):
        register_folder(tmp_path)


@pytest.mark.assets
def test_a_comparison_on_a_folder(tmp_path):
    rows = {"train": 24, "validation": 8, "test": 12}
    text = {
        f"{split}.csv": "text,label\n" + "".join(f"{split} {i} {'ab'[i % 2] * 3},{i % 2}.5\n" for i in range(n))
        for split, n in rows.items()
    }
    data = written(tmp_path / "reviews", text)
    suite = make_suite(tmp_path, make_model(tmp_path / "model"))
    done = svdbench("compare", suite, "--data", data, "--out", tmp_path / "r")
    assert done.returncode == 0, done.stdout + done.stderr
    assert "Spearman" in done.stdout
    found = measured(tmp_path / "r").values()
    assert {run["benchmark"] for run, *_ in found} == {"data:reviews"}
    assert str(tmp_path / "reviews") not in (tmp_path / "r" / "records.jsonl").read_text()
    again = svdbench("compare", suite, "--data", data.rename(tmp_path / "r" / "reviews"), "--out", tmp_path / "r")
    assert "runs in" not in again.stdout  # nothing was computed again in another place
    merged = svdbench("merge", tmp_path / "r" / "lora", "--items", "4", "--plugin", tmp_path / "r" / "reviews")
    assert merged.returncode == 0, merged.stdout + merged.stderr
    bad = svdbench("plan", suite, "--data", tmp_path)
    assert (bad.returncode, len(bad.stderr.strip().splitlines())) == (2, 1)
