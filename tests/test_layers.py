"""The layers of pyproject.toml leave no module out: one that is in none may import anything."""

import tomllib
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]


def layers() -> list[str]:
    """Every module or package that a layer names."""
    settings = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["importlinter"]
    (contract,) = (c for c in settings["contracts"] if c["type"] == "layers")
    return [name.strip() for layer in contract["layers"] for name in layer.split("|")]


def modules() -> list[str]:
    """Every module of the package but the packages that only hold others."""
    files = (ROOT / "igniterd").rglob("*.py")
    return [".".join(f.relative_to(ROOT).with_suffix("").parts) for f in files]


def outside(module: str, named: list[str]) -> bool:
    """Whether the number of layers that hold ``module`` is not one."""
    return sum(f"{module}.".startswith(f"{name}.") for name in named) != 1


def test_every_module_is_in_exactly_one_layer() -> None:
    named = layers()
    bare = {"igniterd.__init__", "igniterd.state.__init__"}  # without imports
    assert [m for m in modules() if m not in bare and outside(m, named)] == []


def test_every_layer_exists() -> None:
    there = modules()
    assert [n for n in layers() if not any(f"{m}.".startswith(f"{n}.") for m in there)] == []


def test_a_module_in_no_layer_is_found() -> None:
    assert outside("igniterd.new", ["igniterd.old"])
    assert outside("igniterd.newer", ["igniterd.new"])
    assert outside("igniterd.new.part", ["igniterd.new", "igniterd.new.part"])
