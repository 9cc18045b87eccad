"""A release is refused where version, changes and content do not fit. No wheel is built here."""

from pathlib import Path

import pytest

from tests.tools.release import (
    ROOT,
    CannotRelease,
    check_content,
    check_version,
    newest_change,
    package_files,
)

README = (
    "# igniterd\n\n## Limits\n\n### 9.9\n\n## Changes\n\n### 0.2.0\n- New.\n\n### 0.1.0\n- First.\n"
)
METADATA = "igniterd-0.2.0.dist-info/"
LICENSE = METADATA + "licenses/igniterd/LICENSE"


@pytest.mark.parametrize("heading", ["0.2.0", "0.2.0 (2026-11-28)", "[0.2.0] - 2026-11-28"])
def test_the_newest_heading_is_the_version(heading: str) -> None:
    check_version("0.2.0", README.replace("0.2.0", heading))


@pytest.mark.parametrize("newest", ["0.1.0", "Unreleased", "0.2.0rc1"])
def test_another_heading_is_refused_with_both_names(newest: str) -> None:
    with pytest.raises(CannotRelease, match=rf"is '{newest}' and .* is '0\.2\.0'"):
        check_version("0.2.0", README.replace("0.2.0", newest))


@pytest.mark.parametrize("readme", ["", "\n## Changes\n", "\n## Changes\n\n## Else\n### 0.2.0\n"])
def test_changes_without_a_heading_are_refused(readme: str) -> None:
    with pytest.raises(CannotRelease, match="no heading"):
        newest_change(readme)


def test_the_project_has_changes() -> None:
    assert newest_change((ROOT / "README.md").read_text(encoding="utf-8"))


def test_a_whole_wheel_is_accepted() -> None:
    check_content(["igniterd/a.py", LICENSE, METADATA + "RECORD"], ["igniterd/a.py"], "0.2.0")


def test_a_wheel_that_lacks_a_file_is_refused() -> None:
    with pytest.raises(CannotRelease, match=r"lacks igniterd/data/a\.csv"):
        check_content([LICENSE], ["igniterd/data/a.csv"], "0.2.0")


def test_a_wheel_without_a_license_is_refused() -> None:
    with pytest.raises(CannotRelease, match="LICENSE"):
        check_content(["igniterd/a.py"], ["igniterd/a.py"], "0.2.0")


def test_a_wheel_with_a_file_of_an_earlier_build_is_refused() -> None:
    with pytest.raises(CannotRelease, match="remove build/"):
        check_content(["igniterd/gone.py", LICENSE], [], "0.2.0")


def test_data_and_templates_belong_to_the_package(tmp_path: Path) -> None:
    files = ("data/v100/solo.csv", "demo/page.html.j2", "py.typed", "LICENSE", "README.md")
    for name in (*files, "__pycache__/a.pyc"):
        path = tmp_path / "igniterd" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()
    assert package_files(tmp_path) == {f"igniterd/{name}" for name in files[:3]}
