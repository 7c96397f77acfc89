"""Which verdicts hold with new questions as well as new seeds."""

from __future__ import annotations

import numpy as np
import pytest
import report_samples as samples

from reports import load
from reports.claims import opening
from reports.new_items import held, item_scores, new_items_sentence
from reports.pairs import pairs_table
from reports.records import Results
from reports.statistics import Comparison, paired_items

SEEDS = range(1, 9)


def record(label, seed, right):
    """A final run that answers the items of ``right`` correctly."""
    made = samples.score_record(label, "final", 5e-3, seed, 0.0)
    items = made["measures"]["score"]["items"]
    items["predicted"] = [g if hit else g + 1 for g, hit in zip(items["gold"], right, strict=True)]
    made["measures"]["score"]["accuracy"] = float(np.mean(right))
    return made


def answers(rng, share, seeds=SEEDS):
    return {seed: rng.random(samples.ITEMS) < share for seed in seeds}


def results_of(folder, methods) -> Results:
    found = [record(label, seed, right) for label, runs in methods.items() for seed, right in runs.items()]
    return load(samples.write_folder(folder, found, samples.suite(methods, seeds=8)))


@pytest.fixture
def methods():
    """Against LoRA, PiSSA gains nine questions and loses three, the same with every seed; the full fine-tune gains two
    fifths of those that LoRA gets wrong, other ones with every seed."""
    base, place = answers(np.random.default_rng(1), 0.7), np.arange(samples.ITEMS)
    gained, lost = place < 9, (place >= 9) & (place < 12)
    lora = {seed: (right & ~gained) | lost for seed, right in base.items()}
    pissa = {seed: (right | gained) & ~lost for seed, right in base.items()}
    full = {seed: right | (np.random.default_rng(seed).random(samples.ITEMS) < 0.4) for seed, right in base.items()}
    return {"lora": lora, "pissa": pissa, "full": full}


def test_a_difference_that_rests_on_a_few_questions_is_open(tmp_path, methods):
    results = results_of(tmp_path, methods)
    table = pairs_table(results)
    rows = {(row[0].value, row[1].value): row for row in table.rows}
    assert [rows["pissa", "lora"][i].value for i in (3, 6)] == ["better", "open"]
    assert [rows["full", "lora"][i].value for i in (3, 6)] == ["better", "holds"]
    assert rows["pissa", "lora"][5].half > rows["pissa", "lora"][2].half
    assert rows["pissa", "lora"][5].value == pytest.approx(rows["pissa", "lora"][2].value)
    assert "Three questions are not the same" in table.caption


def test_the_opening_says_which(tmp_path, methods):
    results = results_of(tmp_path, methods)
    said = new_items_sentence(results)
    assert said.startswith(
        "With new questions as well as new seeds, the verdict holds for full and is open for pissa (+"
    )
    assert said in opening(results, [])


def test_the_interval_is_that_of_the_statistics(tmp_path, methods):
    results = results_of(tmp_path, methods)
    found = held(results, {("full", "lora"): Comparison(None, "better")})["full", "lora"].difference
    scores = [{seed: right.astype(float) for seed, right in methods[label].items()} for label in ("full", "lora")]
    assert found == paired_items(*scores)


@pytest.mark.parametrize(("margin", "word"), [(0.2, "holds"), (0.0001, "open")])
def test_practical_equality_takes_the_margin(tmp_path, methods, margin, word):
    results = results_of(tmp_path, methods)
    results.suite["protocol"]["margin"] = margin
    assert held(results, {("pissa", "lora"): Comparison(None, "practically equal")})["pissa", "lora"].word == word


def test_equal_answers_to_few_questions_are_no_proof_of_equality(tmp_path, methods):
    """None of 500 questions told them apart, so up to 3 in 500 of others may: more than the margin of half a point."""
    results = results_of(tmp_path, {"lora": methods["lora"], "pissa": methods["lora"]})
    found = held(results, {("pissa", "lora"): Comparison(None, "practically equal")})["pissa", "lora"]
    assert (found.word, found.difference.mean) == ("open", 0.0)
    assert found.difference.half > results.margin
    assert "is open for pissa (0.0 ± 0.7 points)" in new_items_sentence(results)


def test_an_undecided_pair_has_nothing_to_hold(tmp_path, methods):
    found = held(results_of(tmp_path, methods), {("pissa", "lora"): Comparison(None, "undecided")})
    assert found["pissa", "lora"].word == ""


def test_a_verdict_of_the_other_side_does_not_hold(tmp_path, methods):
    found = held(results_of(tmp_path, methods), {("full", "lora"): Comparison(None, "worse")})
    assert found["full", "lora"].word == "open"


@pytest.mark.parametrize("change", [lambda ids: ids[::-1], lambda ids: [*ids[1:], 999], lambda ids: ids[:-1]])
def test_items_that_are_not_the_same_do_not_pair(tmp_path, methods, change):
    """In another order, with another one, or fewer: by place every one would be compared with another."""
    found = [record(label, seed, right) for label, runs in methods.items() for seed, right in runs.items()]
    items = found[-1]["measures"]["score"]["items"]
    items["id"] = change(items["id"])
    for name in ("gold", "predicted"):
        items[name] = items[name][: len(items["id"])]
    results = load(samples.write_folder(tmp_path, found, samples.suite(methods, seeds=8)))
    assert new_items_sentence(results) == ""
    assert held(results, {("full", "lora"): Comparison(None, "better")}) == {}


def test_correlations_are_not_means_over_items(tmp_path, methods):
    found = [record(label, seed, right) for label, runs in methods.items() for seed, right in runs.items()]
    for one in found:
        one["measures"]["score"] |= {"metric": "matthews", "matthews": 0.5}
    results = load(samples.write_folder(tmp_path, found, samples.suite(methods, seeds=8)))
    assert item_scores(results, "lora") == {}
    assert new_items_sentence(results) == ""
    assert "Three questions" not in pairs_table(results).caption
