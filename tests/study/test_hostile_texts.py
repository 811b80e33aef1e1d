"""Whatever a user can name appears on the pages of studies as text, and changes nothing else of them."""

from __future__ import annotations

import json
import re
from dataclasses import replace
from pathlib import Path

import pytest

from gatework.study.comparison_page import write_comparison
from gatework.study.report import write_report
from gatework.study.spec import RunSpec
from gatework.tasks.task import Quality
from tests.page.test_frame import EVIL, Parts
from tests.study.synthetic_images import IMAGES, MODELS, RESOLUTION, SEGMENTS, image_study
from tests.study.synthetic_studies import write_study

#: A directory can be called so.
EVIL_NAME = "<b>&\"'<!-- {{ 7 }}"


def hostile_study(directory: Path, text: str, version: str) -> Path:
    """Models at two sizes; in every place that takes a text stands ``text``, with the name of the place.

    Two versions can be compared: they differ in what the study as a whole is called and did.
    """
    declaration = replace(
        SEGMENTS,
        sizes=replace(IMAGES.sizes, title=f"{text} sizes (pixels)"),
        costs=tuple(
            replace(cost, title=f"{text} cost", noun=f"{text} noun", switch=f"{text} switch")
            for cost in SEGMENTS.costs
        ),
        scalings=(
            replace(
                RESOLUTION, question=f"{text} question", caption=f"{text} caption", title=f"{text} along"
            ),
        ),
        sections=(f"{text} plugin:Section",),
    )
    image_study(directory, declaration=SEGMENTS)
    runs, results = [], []
    for path in sorted((directory / "results").iterdir()):
        result = json.loads(path.read_text())
        spec = RunSpec.from_json(result["spec"])
        run = replace(
            spec,
            candidate=f"{text} {spec.candidate}",
            definition={"name": f"{text} model {spec.candidate}"},
            setting_name=f"{text} setting",
        )
        environment = result["environment"] | {"torch": f"{text} torch{version}"}
        result |= {"run_id": run.run_id, "spec": run.to_json(), "environment": environment}
        if result["scaling"]["inference"]["stopped"]:
            result["scaling"]["inference"]["stopped"] = f"{text} stopped"
        if spec.candidate == "hornet" and spec.seed == 1:
            result |= {"status": "failed", "message": f"{text} message", "metrics": None, "cost": None}
            result |= {"curve": None, "scaling": {}}
        runs.append(run)
        results.append(result)
        path.unlink()
    (directory / "results").rmdir()
    quality = Quality(f"{text} quality", "higher", unit=f"{text} unit", range=(0.0, 100.0))
    write_study(
        directory,
        runs,
        results,
        quality=quality,
        title=f"{text} title{version}",
        budget=f"{text} budget{version}",
        declaration=declaration,
        notes=[f"{text} note"],
    )
    study = json.loads((directory / "study.json").read_text())
    study |= {"command": f"{text} command{version}", "plugins": [f"{text} plugin{version}"]}
    (directory / "study.json").write_text(json.dumps(study))
    return directory


#: Texts that stand in the words of the page; others stand in what its scripts draw.
PLACES = (
    *("title", "budget", "note", "command", "quality", "unit", "sizes", "cost", "switch", "question"),
    *("caption", "plugin:Section", "stopped", "torch"),
    *(name for model in MODELS for name in (model, f"model {model}")),
)


@pytest.fixture(scope="module")
def studies(tmp_path_factory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("studies")
    names = {EVIL: EVIL_NAME, "Tame": "tame"}
    return {
        text + version: hostile_study(folder / (name + version), text, version)
        for text, name in names.items()
        for version in ("", " B")
    }


def check_same(evil: Parts, tame: Parts, places: tuple[str, ...]) -> None:
    """Both have the same tags, and texts at the same places."""
    assert evil.tags == tame.tags
    assert evil.comments == tame.comments == []
    for place in places:
        times = sum(text.count(f"Tame {place}") for text in tame.texts)
        assert times > 0, place
        assert sum(text.count(f"{EVIL} {place}") for text in evil.texts) == times, place


def test_the_page_of_a_study(studies):
    evil, tame = (Parts(write_report(studies[text]).read_text()) for text in (EVIL, "Tame"))
    check_same(evil, tame, PLACES)
    assert f"photographs · {EVIL_NAME} · 2026-01-05" in evil.texts
    # The scripts' data: between the style and the scripts.
    assert not set("<>&") & set(evil.scripts[1])
    drawn = [[entry["name"] for entry in json.loads(page.scripts[1])["series"]] for page in (evil, tame)]
    assert drawn[0] == [name.replace("Tame", EVIL) for name in drawn[1]]


def test_the_page_of_a_comparison(studies, tmp_path):
    evil, tame = (
        Parts(write_comparison(studies[text], studies[f"{text} B"], tmp_path / "page.html").read_text())
        for text in (EVIL, "Tame")
    )
    whole = ("title", "budget", "command", "plugin", "torch")
    check_same(evil, tame, ("quality", *whole, *(f"{place} B" for place in whole)))


def test_a_candidate_has_its_own_symbol(studies):
    page = write_report(studies["Tame"]).read_text()
    series = json.loads(Parts(page).scripts[1])["series"]
    places = re.findall(r'data-series="(\d+)"></span><span>(.*?)</span>', page)
    assert len(places) >= len(series)
    assert all(series[int(index)]["name"] == name for index, name in places)
