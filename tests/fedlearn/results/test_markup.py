"""Parts of a page: text is escaped and bounded, and tables leave out what has no value."""

from __future__ import annotations

import pytest

from fedlearn.results.markup import (
    NOT_KNOWN,
    Cell,
    Head,
    Html,
    banner,
    code,
    definitions,
    details,
    document,
    footer,
    header,
    items,
    joined,
    note,
    number_text,
    paragraph,
    preformatted,
    section,
    shortened,
    table,
    tag,
    tiles,
)

EVIL = "<img src=x onerror=alert(1)>\x1b[31m\u202e\"'&"


def test_text_is_escaped_wherever_it_stands() -> None:
    page = document(
        EVIL,
        banner(EVIL, EVIL),
        header(EVIL, EVIL),
        tiles([(EVIL, EVIL)]),
        section(EVIL, paragraph(EVIL), note(EVIL), items([EVIL]), code(EVIL), tag(EVIL, "bad")),
        details(EVIL, preformatted(EVIL), definitions([(EVIL, EVIL)])),
        table([Head(EVIL), Head(EVIL)], [[EVIL, Cell(EVIL, "gain")]], caption=EVIL),
        footer(joined(EVIL, EVIL)),
    )
    assert "<img" not in page
    assert "\x1b" not in page
    assert "\u202e" not in page
    assert page.count("onerror=alert(1)&gt;") == 25


def test_a_long_text_is_cut() -> None:
    assert len(paragraph("x" * 1_000_000)) < 2100


def test_columns_and_definitions_without_a_value_are_left_out() -> None:
    heads = [Head("Site"), Head("Known"), Head("Never")]
    text = table(heads, [["a", "1", NOT_KNOWN], ["b", NOT_KNOWN, NOT_KNOWN]])
    assert "Known" in text
    assert "Never" not in text
    assert "Never" not in definitions([("Never", "")])
    assert section("Empty", "", Html()) == ""


def test_a_table_without_end_shows_its_end_and_what_is_left_out() -> None:
    text = table([Head("n")], [[str(n)] for n in range(1200)])
    assert text.count("<tr") == 501
    assert "The first 700 of 1200 rows are left out." in text
    assert ">1199<" in text


@pytest.mark.parametrize(
    ("value", "shown"),
    [(0.65, "0.650"), (0.0, "0.000"), (1e-5, "1e-05"), (12345.678, "1.235e+04"), (None, "n/a")],
)
def test_numbers(value: float | None, shown: str) -> None:
    assert number_text(value) == shown
    assert number_text(float("nan")) == NOT_KNOWN


def test_digests_are_short_in_sentences_and_other_words_stay() -> None:
    text = f"app is {'c1d0' * 16}, expected feedface and deadbeefdeadbeef"
    assert shortened(text) == "app is c1d0c1d0…c1d0, expected feedface and deadbeefdeadbeef"
