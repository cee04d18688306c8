"""The report page as a browser parses it: nothing is loaded, nothing is injected, every element is labelled."""

import re
from collections import Counter
from dataclasses import replace
from html import unescape
from html.parser import HTMLParser
from itertools import pairwise
from typing import Any

import pytest

from pyrite.report.data import build
from pyrite.report.pages import report_page
from report.report_factory import make, with_timelines
from report.test_data import with_base_chosen

HOSTILE = """<script>alert(1)</script><img src=x onerror=alert(1)>"'><style>*{display:none}</style>{{ 7*7
}}</td>"""
VOID = {"meta", "link", "img", "br", "hr", "input"}


class Page(HTMLParser):
    """Elements with their attributes in order, and the texts by element name."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.elements: list[tuple[str, dict[str, str | None]]] = []
        self.texts: dict[str, list[str]] = {}
        self.open: list[str] = []
        self.feed(html)
        self.close()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, dict(attrs)))
        if tag not in VOID:
            self.open.append(tag)
            self.texts.setdefault(tag, []).append("")

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, dict(attrs)))

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag, f"</{tag}> does not match"

    def handle_data(self, data: str) -> None:
        for tag in set(self.open):
            self.texts[tag][-1] += data

    def count(self, tag: str) -> int:
        return sum(name == tag for name, _ in self.elements)


@pytest.fixture(scope="module")
def html() -> str:
    return report_page(build(make()))


@pytest.fixture(scope="module")
def page(html: str) -> Page:
    return Page(html)


def test_page_is_deterministic(html: str) -> None:
    assert report_page(build(make())) == html


def test_page_loads_nothing(page: Page, html: str) -> None:
    assert {"script", "link", "img", "iframe", "object", "embed", "base", "form"}.isdisjoint(
        tag for tag, _ in page.elements
    )
    for tag, attributes in page.elements:
        for name, value in attributes.items():
            if name in {"src", "href", "xlink:href", "srcset", "data", "action", "poster", "background"}:
                assert tag == "use", f"<{tag} {name}>"
                assert (value or "").startswith("#")
    assert not re.search(r"@import|url\((?!#)", html)
    # Browsers do not fetch XML namespaces. The page has no other URL.
    assert set(re.findall(r"https?://[^\"'<> ]+", html)) <= {
        "http://www.w3.org/2000/svg",
        "http://www.w3.org/1999/xlink",
    }


def test_content_security_policy_blocks_scripts_and_network(page: Page) -> None:
    policies = [a["content"] for t, a in page.elements if a.get("http-equiv") == "Content-Security-Policy"]
    assert policies == ["default-src 'none'; style-src 'unsafe-inline'"]


def test_markup_in_the_data_is_escaped() -> None:
    plain, attacked = Page(report_page(build(make()))), Page(report_page(build(make(hostile=HOSTILE))))
    assert "script" not in {tag for tag, _ in attacked.elements}
    assert "img" not in {tag for tag, _ in attacked.elements}
    assert attacked.count("style") == plain.count("style")
    assert not [a for _, a in attacked.elements if any(name.startswith("on") for name in a)]
    assert any(HOSTILE in text for text in attacked.texts["p"])
    assert any(HOSTILE in text for text in attacked.texts["details"])
    # The data set's text is shown in many places: queries, titles, passages, types, reasons, examples.
    assert sum(text.count("alert(1)") for text in attacked.texts["body"]) > 100


def test_heading_1_is_the_verdict_and_levels_do_not_skip(page: Page) -> None:
    headings = [int(tag[1]) for tag, _ in page.elements if re.fullmatch(r"h\d", tag)]
    assert headings.count(1) == 1
    assert headings[0] == 1
    assert all(after - before <= 1 for before, after in pairwise(headings))
    assert page.texts["h1"][0].startswith("Adapted: MRR@5 rose from")


def test_tables_are_captioned_and_scroll_in_a_region(page: Page) -> None:
    assert page.count("table") == page.count("caption") > 6
    assert sum(a.get("class") == "scroll" for _, a in page.elements) == page.count("table")
    assert all(a.get("scope") in {"row", "col"} for tag, a in page.elements if tag == "th")
    assert all(a.get("aria-label") for _, a in page.elements if a.get("class") == "scroll")


def test_plots_have_descriptions_and_use_page_colours(page: Page, html: str) -> None:
    plots = [a for tag, a in page.elements if tag == "svg"]
    assert len(plots) == 6
    assert all(a["role"] == "img" and len(a["aria-label"] or "") > 20 for a in plots)
    drawings = re.findall(r"<svg.*?</svg>", html, re.DOTALL)
    assert not any(re.search(r"#[0-9a-f]{6}\b", drawing) for drawing in drawings)
    assert not any("DejaVu" in drawing for drawing in drawings)
    # The style sheet defines every variable that a plot uses.
    used = set(re.findall(r"var\((--[\w-]+)\)", html))
    assert all(re.search(rf"{name}:", html) for name in used)


def test_ids_are_unique(page: Page) -> None:
    ids = Counter(a["id"] for _, a in page.elements if "id" in a)
    assert [name for name, count in ids.items() if count > 1] == []
    referred = {(value or "")[1:] for _, a in page.elements for name, value in a.items() if name.endswith("href")}
    assert referred <= set(ids)


@pytest.mark.parametrize(
    "change",
    [
        {"iterations": 1},
        {"iterations": 7, "retention": False},
        {"gain": 0.0},
        {"evaluate": {"blends": []}, "retention": False},
        {"queries": 4},
        {"judge": {"kind": "llm", "model": "a-model"}},
    ],
    ids=str,
)
def test_page_of_any_run_starts_with_the_verdict(change: dict[str, Any]) -> None:
    report = build(make(**change))
    parsed = Page(report_page(report))
    assert parsed.texts["h1"][0].replace("\N{MINUS SIGN}", "-").replace("\xa0", " ") == report["verdict"]
    assert not any(word in parsed.texts["body"][0] for word in ("None", "nan", "Undefined"))


def test_page_shows_that_the_base_model_was_chosen() -> None:
    text = Page(report_page(build(with_base_chosen(make())))).texts["body"][0]
    assert "Not adapted: " in text
    assert "which was not chosen" in text


def test_page_has_smaller_embeddings_if_they_were_scored() -> None:
    inputs = make(finetune={"matryoshka": [64, 128]})
    text = unescape(re.sub(r"<[^>]+>", " ", report_page(build(inputs))))
    assert "Training also optimised the first 128, 64 dimensions." in text
    assert re.search(r"int8\s+384\s+\.\d+\s+\N{MINUS SIGN}1\.0%", text)
    assert "Smaller embeddings" not in report_page(build(replace(inputs, smaller=inputs.smaller.slice(0, 0))))


def test_page_is_rendered_without_manifests() -> None:
    report = build(replace(make(), manifests={}, judged={}))
    assert "No records were dropped." in Page(report_page(report)).texts["body"][0]


def test_judging_table_has_costs_for_an_llm_not_for_labels() -> None:
    llm = {"kind": "llm", "model": "a-model", "prompt": "medical"}
    page = Page(report_page(build(make(judge=llm))))
    rows, text = page.texts["tr"], " ".join(page.texts["body"][0].split())
    assert "Judging by a-model, prompt medical: 632 pairs requested in" in text
    for row in (
        "judged pairs356356",
        "of these, cached judgments4040",
        "of these, in the prefix cache60%60%",
        "missing44",
    ):
        assert row in rows
    assert "Decoding: one token constrained to the labels, with their probabilities if the server" in text
    assert "5.672 dollars per hour (AWS on-demand price" in text
    page = Page(report_page(build(make())))
    assert {"judged pairs300300", "skipped6060", "not selected8080"} <= set(page.texts["tr"])
    for word in ("dollars", "prompt tokens", "cached judgments", "per second"):
        assert word not in page.texts["body"][0]
    assert "missing00" not in page.texts["tr"], "a count of zero has no row"


def test_long_llm_judging_has_plots_over_time() -> None:
    llm = {"kind": "llm", "model": "a-model"}
    report = build(with_timelines(make(judge=llm, iterations=3), changed=3))
    html = report_page(report)
    assert report_page(report) == html
    page = Page(html)
    speed, shares = [a["aria-label"] or "" for tag, a in page.elements if tag == "svg"][-2:]
    assert speed.startswith("Pairs judged per second over time, range. iteration 1: 0.0 to ")
    assert [shares.count(f"iteration {number}: grade 1 ") for number in (1, 2, 3)] == [1, 1, 1]
    drawings = dict(re.findall(r'(?s)<g id="(judging_speed|judging_grades)-figure_1">(.*?)</svg>', html))
    dashed = drawings["judging_grades"].count("stroke-dasharray")
    assert dashed == 8, "four grades in each iteration except the first"
    assert all(f"var(--g{grade})" in drawings["judging_grades"] for grade in (1, 2, 3, 4))
    assert set(re.findall(r"var\((--[\w-]+)\)", html)) <= set(re.findall(r"(--[\w-]+):", html))
    (caption,) = (text for text in page.texts["figure"] if "Largest change" in text)
    assert "among newly judged pairs: the share of grade 1 went from 4" in caption
    assert "in iteration 2 to 3" in caption
    short = report_page(build(with_timelines(make(judge=llm, iterations=1), pairs=40)))
    assert "Grades over time" not in short, "80 pairs fill only two slices"
    for iterations in (1, 7):
        other = build(with_timelines(make(judge=llm, iterations=iterations), pairs=200))
        assert Page(report_page(other)).count("svg") == 8


def test_markup_in_model_and_prompt_names_is_escaped() -> None:
    llm = {"kind": "llm", "model": HOSTILE, "prompt": HOSTILE}
    attacked = Page(report_page(build(make(judge=llm))))
    assert "script" not in {tag for tag, _ in attacked.elements}
    assert any(HOSTILE in text for text in attacked.texts["caption"])


def test_the_page_says_that_the_judge_errs_on_purpose() -> None:
    page = report_page(build(make(iterations=1, judge={"noise": {"kappa": 0.5}})))
    assert "The data set's own answers with simulated errors (noise of kappa 0.5) were the judge" in unescape(page)
    assert "simulated errors" not in report_page(build(make(iterations=1)))


def test_page_says_where_the_blends_weights_come_from() -> None:
    assert "The run file sets the weights of the blends: 0.3, 0.6 (evaluate.blends)" in report_page(build(make()))
    assert "sets the weights of the blends: none" in report_page(build(make(evaluate={"blends": []})))


@pytest.mark.parametrize(
    ("first", "second", "caveat"),
    [
        ("labels", "llm", "own answers were the first judge of the cascade, so this says nothing about an LLM in its"),
        ("llm", "labels", "own answers were the second judge of the cascade, so this says nothing about an LLM in its"),
        ("labels", "labels", "own answers were both judges of the cascade"),
    ],
)
def test_the_page_names_labels_and_decoding_in_a_cascade(first: str, second: str, caveat: str) -> None:
    of = {"labels": {"kind": "labels"}, "llm": {"kind": "llm", "model": "m"}}
    judge = {"kind": "cascade", "first": of[first], "second": of[second]}
    inputs = make(iterations=1, judge=judge, resources={"first_judge_urls": ["http://h:1"]})
    audit = {"pairs": 0, "errors": 0, "standard_error": 0.0}
    for name in ("judge-1.0", "judge-1.1"):
        first_summary = {"judge": "f", "decoding_mode": "text" if first == "llm" else None}
        inputs.manifests[name]["summary"] |= {"by_first": 3, "audit": audit, "first": first_summary}
    page = unescape(report_page(build(inputs)))
    assert caveat in page
    assert ("Decoding of the first judge: a short reply" in page) == (first == "llm")
    assert ("Decoding of the second judge: " in page) == (second == "llm")
    assert ("Pairs and tokens are those of the second judge" in page) == (second == "llm")


def test_page_has_the_known_answers_of_a_judge_that_can_err() -> None:
    report = build(make(judge={"noise": {"kappa": 0.5}}))
    page = report_page(report)
    known = report["known_answers"]
    assert f"known answers: {known['judged']} of {known['known']} pairs" in page
    assert "Grades that the judge gave to known answers" not in report_page(build(make()))
