"""The section on spectra: what it says of measured runs, and that it is absent without them."""

from __future__ import annotations

import base64
import copy
from pathlib import Path
from typing import Any

import altair as alt
import numpy as np
import pytest
from numpy.typing import NDArray
from report_samples import METHODS, all_records, suite, write_folder

from reports import load, spectra
from reports.drawing import COLOURS
from reports.figures import figures
from reports.latex import to_latex
from reports.page import page
from reports.records import Results
from reports.render import to_csv, to_markdown
from reports.spectra import between_methods, between_seeds, by_chance, directions_of, subspace_similarity
from reports.table import Cell, Table
from reports.write import all_tables

N, RANK = 32, 4
FIGURES = {"spectrum", "similarity", "defects"}
SPEC = {"directions": RANK, "intruders": 10, "epsilon": 0.5, "forgetting": "polarity", "items": 100}


def columns(first: int, rank: int = RANK, n: int = N) -> NDArray[np.float64]:
    """Unit vectors, as columns: those numbered from ``first`` on."""
    return np.eye(n)[:, first : first + rank]


def directions(left: NDArray[np.float64], right: NDArray[np.float64], path: str = "layer.0.query") -> dict[str, Any]:
    texts = {
        side: base64.b64encode(X.astype("<f2").tobytes()).decode() for side, X in (("left", left), ("right", right))
    }
    return {"path": path, "out": len(left), "in": len(right), "rank": left.shape[1], **texts}


def measured(place: int) -> dict[str, Any]:
    middle = {"relative_size": 0.02, "effective_rank": 3.5 + place, "stable_rank": 1.5, "amplification": 20.0}
    middle |= {"top_left": 0.2, "top_right": 0.1, "bottom_left": 0.01, "bottom_right": 0.02}
    middle |= {"chance_left": RANK / N, "chance_right": RANK / N, "intruders": 0.5}
    return {
        "update": {
            "median": middle,
            "max": {kind: 2 * value for kind, value in middle.items()},
            "intruders": 3,
            "examined": 120,
            "values": [1.0, 0.5, 0.1],
        },
        "defects": None,
        "forgetting": {"items": 100, "cosine_distance": 0.03, "relative_change": 0.2, "similarity_kept": 0.98},
    }


def watched() -> list[dict[str, Any]]:
    """All final runs with directions, the first ones in full; of LoRA's three seeds two agree."""
    records = copy.deepcopy(all_records())
    for record in records:
        run, label = record["run"], record["key"].partition("-")[0]
        if run.get("stage") != "final":
            continue
        place, seed = list(METHODS).index(label), run["seed"]
        found: dict[str, Any] = {"directions": [directions(columns(0), columns(RANK * (seed == 3)))]}
        if label == "probe":
            found = {"directions": None}
        if seed == 1:
            found |= measured(place) if label != "probe" else {"update": None, "defects": None, "forgetting": None}
        if label == "stiefel" and seed == 1:
            found["defects"] = [
                {"step": step, "largest": value, "mean": value / 2}
                for step, value in ((0, 0.0), (30, 1e-6), (60, 2e-6))
            ]
        record["measures"]["spectrum"] = found
    return records


def results_of(folder: Path, records: list[dict[str, Any]] | None = None) -> Results:
    return load(write_folder(folder, records or watched(), suite() | {"spectrum": SPEC}))


def row(table: Table, name: str) -> dict[str, Cell]:
    found = next(row for row in table.rows if row[0].value == name)
    return dict(zip((column.key for column in table.columns), found, strict=True))


# ---- forgetting -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("left_out", "said"),
    [
        (None, "of 100 texts of polarity differ"),
        (0, "of 100 texts of polarity that are not in trec50 differ"),
        (406, "of 100 texts of polarity that are not in trec50 (406 that are were left out) differ"),
    ],
)
def test_the_texts_of_forgetting_are_what_the_records_say(tmp_path, left_out, said):
    records = watched()
    for record in records:
        lost = record["measures"].get("spectrum", {}).get("forgetting")
        if lost and left_out is not None:
            lost["left_out"] = left_out
    assert said in all_tables(results_of(tmp_path, records))["spectrum"].caption


# ---- similarity -----------------------------------------------------------------------------------------------------


def check_similarity() -> None:
    assert subspace_similarity(columns(0), columns(0)) == 1
    assert subspace_similarity(columns(0), columns(RANK)) == 0
    assert subspace_similarity(columns(0, 3), columns(1, 3)) == pytest.approx(2 / 3)
    assert subspace_similarity(columns(0, 2), columns(0, 6)) == 1, "the smaller span lies in the larger one"
    turned = np.linalg.qr(np.random.default_rng(0).normal(size=(RANK, RANK)))[0]
    assert subspace_similarity(columns(0), columns(0) @ turned) == pytest.approx(1), "no basis of a span is special"


def test_similarity_of_known_subspaces():
    check_similarity()
    rng = np.random.default_rng(1)
    bases = [np.linalg.qr(rng.normal(size=(N, RANK)))[0] for _ in range(200)]
    found = [subspace_similarity(a, b) for a, b in zip(bases[::2], bases[1::2], strict=True)]
    assert np.mean(found) == pytest.approx(RANK / N, rel=0.1)


@pytest.mark.parametrize(
    "broken",
    [
        lambda A, B: float(np.square(A.T @ B).sum() / max(A.shape[1], B.shape[1])),
        lambda A, B: float(np.square((A[:, : B.shape[1]] * B[:, : A.shape[1]]).sum(0)).mean()),
        lambda A, B: float(np.abs(A.T @ B).sum() / min(A.shape[1], B.shape[1])),
    ],
    ids=["the larger rank", "pair by pair", "not squared"],
)
def test_a_broken_similarity_is_caught(monkeypatch, broken):
    monkeypatch.setitem(globals(), "subspace_similarity", broken)
    with pytest.raises(AssertionError):
        check_similarity()


def test_seeds_and_methods_are_paired(tmp_path):
    results = results_of(tmp_path)
    assert between_seeds(results, "lora", "left") == 1
    assert between_seeds(results, "lora", "right") == pytest.approx(1 / 3)  # one of three pairs
    assert between_methods(results, "lora", "pissa", "right") == 1, "seed by seed, not every seed with every other"
    assert between_methods(results, "lora", "probe", "right") is None
    assert between_seeds(results, "probe", "right") is None
    bases = directions_of(results.of("lora", "final")[0])
    assert by_chance(bases, "right") == RANK / N
    assert bases.keys() == {("layer.0.query", "left"), ("layer.0.query", "right")}


def test_layers_that_only_one_run_has_are_left_out(tmp_path):
    records = watched()
    other = directions(columns(0), columns(0), "layer.9.query")
    first = next(r for r in records if r["key"].startswith("lora-final"))
    first["measures"]["spectrum"]["directions"].append(other)
    assert between_seeds(results_of(tmp_path), "lora", "left") == 1


# ---- table and figures ----------------------------------------------------------------------------------------------


def test_the_table_follows_the_records(tmp_path):
    table = all_tables(results_of(tmp_path))["spectrum"]
    assert [found[0].value for found in table.rows] == list(METHODS)
    lora = {key: cell.value for key, cell in row(table, "lora").items()}
    assert (lora["effective_rank"], lora["effective_rank_max"], lora["stable_rank"]) == (3.5, 7.0, 1.5)
    assert (lora["top_right"], lora["chance_right"]) == (0.1, RANK / N)
    assert (lora["intruders"], lora["examined"], lora["similarity_kept"]) == (3, 120, 0.98)
    assert lora["seeds_right"] == pytest.approx(1 / 3)
    probe = row(table, "probe")
    assert probe["remark"].value == "no update of weights"
    assert probe["effective_rank"].value is None
    for said in (
        "4 leading directions",
        "is below 0.5",
        "100 texts of polarity",
        "the 10 leading left singular vectors",
    ):
        assert said in table.caption
    assert all(render(table) for render in (to_markdown, to_latex, to_csv))


def test_the_figures_follow_the_records(tmp_path):
    drawn = figures(results_of(tmp_path))
    assert drawn.keys() >= FIGURES
    for key in FIGURES:
        alt.LayerChart.from_dict(drawn[key].spec)
        assert drawn[key].alt
    values = next(iter(drawn["spectrum"].spec["datasets"].values()))
    assert [v["value"] for v in values if v["method"] == "lora"] == [1.0, 0.5, 0.1]
    assert {v["method"] for v in values} == METHODS.keys() - {"probe"}
    assert "lora has 3, the last 0.1" in drawn["spectrum"].alt
    square = next(iter(drawn["similarity"].spec["datasets"].values()))
    assert len(square) == (len(METHODS) - 1) ** 2
    assert "lora 0.33" in drawn["similarity"].alt
    assert "about 0.12 by chance" in drawn["similarity"].caption
    assert "stiefel 2e-6 after 60 steps" in drawn["defects"].alt


def test_a_method_has_its_colour_here_too(tmp_path):
    spec = figures(results_of(tmp_path))["defects"].spec
    scale = spec["layer"][0]["encoding"]["color"]["scale"]
    assert (scale["domain"], scale["range"]) == (["stiefel"], [COLOURS[list(METHODS).index("stiefel")]])


def page_of(results: Results) -> str:
    drawn = figures(results)
    return page(results, [], [], all_tables(results), drawn, dict.fromkeys(drawn, "<svg></svg>"))


def test_the_section_is_there_only_with_data(tmp_path):
    written = page_of(results_of(tmp_path / "a"))
    assert '<section id="spectra">' in written
    assert written.count('href="#spectra"') == 1
    assert all(f'id="figure-{key}"' in written for key in FIGURES)
    bare = load(write_folder(tmp_path / "b", all_records()))
    assert "spectrum" not in all_tables(bare)
    assert not FIGURES & figures(bare).keys()
    assert 'id="spectra"' not in page_of(bare)
    assert "#spectra" not in page_of(bare)


@pytest.mark.parametrize("part", ["update", "defects", "forgetting", "directions"])
def test_any_part_may_be_absent(tmp_path, part):
    records = watched()
    for record in records:
        spectrum = record["measures"].get("spectrum") or {}
        if part in spectrum:
            spectrum[part] = None
    results = results_of(tmp_path, records)
    assert all_tables(results)["spectrum"].rows
    assert '<section id="spectra">' in page_of(results)


def test_a_page_that_forgets_the_section_is_caught(tmp_path, monkeypatch):
    monkeypatch.setattr(spectra, "spectrum_of", lambda *_: {})
    with pytest.raises((AssertionError, KeyError)):
        test_the_table_follows_the_records(tmp_path)
