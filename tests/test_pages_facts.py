"""The page for those who run igniterd names every metric, alert and hint that there is, and the
architecture page names files and names that there are."""

import re
from pathlib import Path

import pytest
from prometheus_client.parser import text_string_to_metric_families

from igniterd import hints
from igniterd.clients.fleet_metrics import ClusterReading, FleetMetrics
from igniterd.clients.metrics import Metrics
from igniterd.clients.mqtt import MqttStatistics
from igniterd.decisions import DecisionKind
from igniterd.states import State
from tests.clients.ticks import a_config, a_tick

ROOT = Path(__file__).resolve().parents[1]
OPERATE = (ROOT / "systemd" / "README.md").read_text(encoding="utf-8")
ARCHITECTURE = (ROOT / "igniterd" / "README.md").read_text(encoding="utf-8")


def part(page: str, heading: str) -> str:
    """The text below ``heading`` up to the next one that is not below it."""
    below = page.split(f"\n{heading}\n", 1)[1]
    level = heading.index(" ")
    return re.split(rf"^#{{1,{level}}} ", below, maxsplit=1, flags=re.MULTILINE)[0]


def first_cells(text: str) -> set[str]:
    """Every name in the first cells of the tables of ``text``, without its labels."""
    cells = re.findall(r"^\| (.*?) \|", text, re.MULTILINE)
    return {name for cell in cells for name in re.findall(r"`(\w+)(?:\{[\w,]*\})?`", cell)}


def served() -> set[str]:
    """Every metric of the admin address, as an operator asks for it, without the prefix."""
    metrics = Metrics(a_config(), mqtt=MqttStatistics())
    metrics.update(a_tick())
    families = text_string_to_metric_families(metrics.render()[0].decode())
    return {
        family.name.removeprefix("igniterd_") + ("_total" if family.type == "counter" else "")
        for family in families
        if family.name.startswith("igniterd_")
    }


def test_every_metric_is_on_the_page() -> None:
    assert first_cells(part(OPERATE, "## Metrics")) == served()


def served_by_the_fleet() -> set[str]:
    """Every metric of ``igniterd fleet``."""
    cluster = ClusterReading("lab", moves=1, feasible=True, unsolved=0, answered_s=1.0)
    page = FleetMetrics(lambda: [cluster]).render()[0].decode()
    return {
        family.name.removeprefix("igniterd_") + ("_total" if family.type == "counter" else "")
        for family in text_string_to_metric_families(page)
        if family.name.startswith("igniterd_")
    }


def test_every_metric_of_the_fleet_is_on_the_page() -> None:
    topics = {"rebalance", "speaker"}  # whole paths, of which no name is a cell
    named = first_cells(part(OPERATE, "## A cluster"))
    assert named - topics == served_by_the_fleet()


def test_every_alert_is_on_the_page() -> None:
    rules = (ROOT / "igniterd" / "data" / "alerts.yml").read_text(encoding="utf-8")
    alerts = set(re.findall(r"- alert: (\w+)", rules))
    assert first_cells(part(OPERATE, "### What to alert on")) == alerts


def test_every_kind_of_hint_is_on_the_page() -> None:
    kinds = set(re.findall(r'"kind": "(\w+)"', Path(hints.__file__).read_text(encoding="utf-8")))
    topics = {"status", "state", "hint", "profile"}
    assert first_cells(part(OPERATE, "## Hints")) == kinds | topics


def test_every_state_and_outcome_is_on_a_page() -> None:
    assert {state.value for state in State} <= first_cells(part(ARCHITECTURE, "## How it decides"))
    outcomes = {kind.value for kind in DecisionKind}
    assert outcomes <= first_cells(part(OPERATE, "### How to read `why`"))


def files_named(page: str) -> set[str]:
    """Every file or folder that ``page`` names in code, of the package or of the project."""
    return set(re.findall(r"`([\w/]+(?:/|\.py|\.yml))`", page))


def test_every_file_that_the_architecture_page_names_is_there() -> None:
    assert [
        name
        for name in sorted(files_named(ARCHITECTURE))
        if not any((folder / name).exists() for folder in (ROOT, ROOT / "igniterd"))
    ] == []


def is_there(name: str) -> bool:
    """Whether the package has ``name``, such as ``decide.gpu``, ``records.Gap`` or ``planner/``."""
    *module, last = name.strip("/").replace("/", ".").split(".")
    folder = ROOT.joinpath("igniterd", *module)
    if (folder / last).is_dir() or (folder / last).with_suffix(".py").is_file():
        return True
    source = folder.with_suffix(".py")
    text = source.read_text(encoding="utf-8") if source.is_file() else ""
    return re.search(rf"^(?:class )?{last}\b", text, re.MULTILINE) is not None


def glossary() -> list[tuple[str, list[str]]]:
    """Every term of the glossary with its places."""
    rows = re.findall(
        r"^\| (.*?) \| .* \| .*? \| (`.*?`) \| .*\|$",
        part(ARCHITECTURE, "## Glossary"),
        re.MULTILINE,
    )
    return [(term, re.findall(r"`([^`]+)`", places)) for term, places in rows]


def test_every_place_of_the_glossary_is_there() -> None:
    assert len(glossary()) > 30
    assert [p for _, places in glossary() for p in places if not is_there(p)] == []


def test_every_record_of_the_glossary_is_where_it_says() -> None:
    records = {t.strip("`"): p for t, p in glossary() if re.fullmatch(r"`[A-Z]\w+`", t)}
    assert len(records) > 10
    assert [r for r, p in records.items() if not any(is_there(f"{one}.{r}") for one in p)] == []


@pytest.mark.parametrize("name", ["records.Gone", "gone", "decide.gone", "gone/"])
def test_a_place_that_is_gone_is_found(name: str) -> None:
    assert not is_there(name)
