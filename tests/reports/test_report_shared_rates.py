"""A shared learning rate crowns a winner and tuning takes the crown away: said only where the records show it."""

from __future__ import annotations

import altair as alt
import pytest
import report_samples as samples

from reports import load, shared_rates as module
from reports.claims import opening
from reports.records import Results
from reports.shared_rates import shared_rates, shared_rates_sentences, shared_rates_table
from reports.shared_rates_figure import shared_rates_figure
from reports.statistics import Verdict

RATES = (1e-3, 3.16e-3, 1e-2)
VALIDATION = {"lora": (0.60, 0.70, 0.70), "pissa": (0.68, 0.72, 0.50), "milora": (0.60, 0.70, 0.70)}


def records(seeds=5, finals=10, lost=None):
    """LoRA and PiSSA cross between the rates; tuned they are the same but for what the seeds do."""
    found = []
    for m, (label, levels) in enumerate(VALIDATION.items()):
        for lr, level in zip(RATES, levels, strict=True):
            for seed in range(seeds):
                accuracy = level + 0.01 * samples.wobble(seed) + 0.004 * (m - 1) * (-1) ** seed
                run = samples.score_record(label, "search", lr, -seed, accuracy)
                found.append(samples.diverged(run) if (label, lr, seed) == lost else run)
        for seed in range(1, finals + 1):
            accuracy = 0.72 + 0.01 * samples.wobble(seed) + 0.004 * (m - 1) * (-1) ** seed
            found.append(samples.score_record(label, "final", RATES[1], seed, accuracy))
    return found


def results_of(folder, found) -> Results:
    return load(samples.write_folder(folder, found, samples.suite(VALIDATION, seeds=10)))


def verdicts_of(results: Results) -> dict[tuple[str, float], Verdict]:
    return {(shared.label, shared.rate): shared.verdict for shared in shared_rates(results)}


def test_the_winner_depends_on_the_shared_rate(tmp_path):
    results = results_of(tmp_path, records())
    found = verdicts_of(results)
    assert (found["pissa", 1e-3], found["pissa", 1e-2]) == ("better", "worse")
    assert {label for label, _ in found} == {"pissa", "milora"}
    assert not {"better", "worse"} & {found["milora", lr] for lr in RATES}
    pissa, milora = shared_rates_sentences(results)
    assert "pissa looks better at 2 of 3 rates (by +" in pissa
    assert "and looks worse at 1 of 3 rates (by −" in pissa
    assert pissa.endswith(": practically equal.")
    assert "milora is told apart at none of them; each at its own best rate" in milora
    assert {pissa, milora} <= set(opening(results, []))


def test_tables_and_figures_say_the_same(tmp_path):
    results = results_of(tmp_path, records())
    table = shared_rates_table(results)
    kinds = [(row[0].value, row[2].value) for row in table.rows]
    assert kinds == [(label, at) for label in ("pissa", "milora") for at in (*["at a shared rate"] * 3, "tuned")]
    figure = shared_rates_figure(results)
    assert figure is not None
    alt.LayerChart.from_dict(figure.spec)
    assert "pissa at 0.001: +" in figure.alt
    assert "Tuned: pissa: " in figure.alt


def test_a_rate_at_which_a_seed_diverged_is_left_out(tmp_path):
    found = verdicts_of(results_of(tmp_path, records(lost=("pissa", 1e-2, 2))))
    assert ("pissa", 1e-2) not in found
    assert ("milora", 1e-2) in found
    base = verdicts_of(results_of(tmp_path, records(lost=("lora", 1e-2, 2))))
    assert not {lr for _, lr in base} & {1e-2}


def test_one_seed_a_rate_allows_no_such_comparison(tmp_path):
    results = results_of(tmp_path, records(seeds=1))
    assert shared_rates(results) == shared_rates_sentences(results) == []
    assert shared_rates_table(results).rows == ()
    assert shared_rates_figure(results) is None


def test_without_final_runs_nothing_is_said_of_the_tuned(tmp_path):
    results = results_of(tmp_path, records(finals=0))
    assert all(sentence.endswith("tuned, there is no comparison yet.") for sentence in shared_rates_sentences(results))


def test_a_method_without_a_shared_rate_gets_no_sentence(tmp_path):
    found = records()
    for record in found:
        if record["run"]["stage"] == "search" and record["run"]["method"]["name"] == "milora":
            record["run"]["lr"] *= 1.5
    (sentence,) = shared_rates_sentences(results_of(tmp_path, found))
    assert "with lora, pissa looks better" in sentence


def test_uncorrected_verdicts_are_caught(tmp_path, monkeypatch):
    """Of many rates at which nothing differs, some look better by chance unless the verdicts are corrected."""

    def noise(label, lr, seed):
        return 0.7 + 0.02 * samples.wobble(seed, round(1e4 * lr), len(label))

    rates = [1e-3 * (1 + i) for i in range(40)]
    found = [
        samples.score_record(k, "search", lr, -s, noise(k, lr, s)) for k in VALIDATION for lr in rates for s in range(3)
    ]
    results = results_of(tmp_path, found)
    assert not {"better", "worse"} & set(verdicts_of(results).values())
    monkeypatch.setattr(module, "holm", lambda p_values: p_values)
    assert {"better", "worse"} & set(verdicts_of(results).values())


@pytest.mark.parametrize("changed", ["score", "loss"])
def test_the_order_of_records_and_the_loss_change_nothing(tmp_path, changed):
    found = records()
    if changed == "loss":
        for record in found:
            record["measures"]["score"]["loss"] += 1.0
    assert verdicts_of(results_of(tmp_path / "a", found[::-1])) == verdicts_of(results_of(tmp_path / "b", records()))
