"""The daemon's configuration: ``/etc/igniterd/igniterd.toml``.

The schema is the types. Unknown keys and inconsistent values are refused, all problems at once,
each with its path, the value found and what would be right. Relative paths are taken from the
folder of the configuration file.
"""

from __future__ import annotations

import difflib
import json
import tomllib
from collections.abc import Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import Annotated, Any, TypeVar, get_args

from pydantic import BaseModel, Field, ValidationError, model_validator

from igniterd.addresses import is_secret
from igniterd.config_model import Model
from igniterd.config_sections import (
    Decide,
    Engines,
    Gpu,
    Host,
    Loop,
    Metrics,
    Mps,
    Mqtt,
    Section,
    State,
    Triton,
)
from igniterd.errors import ConfigError

__all__ = [
    "Config",
    "Decide",
    "Engines",
    "Gpu",
    "Host",
    "Loop",
    "Metrics",
    "Model",
    "Mps",
    "Mqtt",
    "Section",
    "State",
    "Triton",
    "load_config",
    "parse_config",
]

Checked = TypeVar("Checked", bound=Section)
Anchored = TypeVar("Anchored", bound=Section)


class Config(Section):
    host: Host = Field(default_factory=Host)
    triton: Annotated[list[Triton], Field(min_length=1)] = Field(default_factory=lambda: [Triton()])
    gpu: Gpu = Field(default_factory=Gpu)
    mps: Mps = Field(default_factory=Mps)
    loop: Loop = Field(default_factory=Loop)
    decide: Decide = Field(default_factory=Decide)
    metrics: Metrics = Field(default_factory=Metrics)
    mqtt: Mqtt | None = None
    state: State = Field(default_factory=State)
    engines: Engines = Field(default_factory=Engines)
    model: Annotated[list[Model], Field(min_length=1)]

    @model_validator(mode="after")
    def _refers(self) -> Config:
        servers = [server.name for server in self.triton]
        problems = [
            f"triton.name {name!r} is given twice"
            for name in sorted({n for n in servers if servers.count(n) > 1})
        ]
        served = [(model.triton, model.name) for model in self.model]
        problems += [
            f"model.name {name!r} is given twice for triton {server!r}: a name is once on a server"
            for server, name in sorted({each for each in served if served.count(each) > 1})
        ]
        names = [model.name for model in self.model]
        for model in self.model:
            # a name has no slash in it
            several = names.count(model.name) > 1
            model._tenant = f"{model.triton}/{model.name}" if several else model.name
        problems += [
            f"model {model.name!r}: triton {model.triton!r} is not one of {', '.join(servers)}"
            for model in self.model
            if model.triton not in servers
        ]
        problems += self._unknown_gpus()
        floor = sum(model.min_share for model in self.model if model.profiles)
        # eight boards a host is the most there are; per board the search itself says infeasible
        if floor > 8:
            problems.append(
                f"the min_share of all models add up to {floor:.2f}, more than any host has"
            )
        if problems:
            raise ValueError("; ".join(problems))
        return self

    def _unknown_gpus(self) -> list[str]:
        """Models on a GPU that their Triton does not have, where its GPUs are given."""
        given = {server.name: server.gpus for server in self.triton if server.gpus}
        return [
            f"model {model.name!r}: gpu {model.gpu!r} is not one of the GPUs of triton "
            f"{model.triton!r}: {', '.join(f'{n} {u}' for n, u in enumerate(gpus))}"
            for model in self.model
            if model.gpu is not None
            and (gpus := given.get(model.triton))
            and model.gpu not in (*range(len(gpus)), *gpus)
        ]

    @property
    def shares(self) -> Path:
        """The folder of share environments."""
        return self.state.shares or self.state.directory / "shares"

    def by_name(self) -> Mapping[str, Model]:
        """The models, by what they are called on this host (:attr:`Model.tenant`)."""
        models, named = self.named
        # a copy with other models takes over what was named before
        return named if models is self.model else _named(self.model)

    @cached_property
    def named(self) -> tuple[list[Model], Mapping[str, Model]]:
        """Of :meth:`by_name`, which is asked many times a tick: the models it was made of, and what
        it was."""
        return self.model, _named(self.model)


def _named(models: list[Model]) -> Mapping[str, Model]:
    return {model.tenant: model for model in models}


def _path_of(location: tuple[int | str, ...]) -> str:
    """``("model", 0, "slo_p99_ms")`` as ``model[0].slo_p99_ms``."""
    text = ""
    for part in location:
        text += f"[{part}]" if isinstance(part, int) else f".{part}" if text else str(part)
    return text or "the file"


def _said(problem: Any, schema: type[BaseModel]) -> str:
    path, message, value = (
        _path_of(problem["loc"]),
        problem["msg"].removeprefix("Value error, "),
        problem.get("input"),
    )
    if problem["type"] == "missing":
        return f"{path}: missing"
    if problem["type"] == "extra_forbidden":
        return f"{path}: {_unknown(problem, schema)}"
    hidden = is_secret(problem["loc"], value) or isinstance(value, dict | list | BaseModel)
    return f"{path}: {message}" + ("" if hidden else f" (found {value!r})")


def _unknown(problem: Any, schema: type[BaseModel]) -> str:
    """That nobody knows this key, and which one may be meant."""
    *way, key = problem["loc"]
    value = problem.get("input")
    kind = "table" if isinstance(value, dict) or _tables(value) else "key"
    known = _keys_at(schema, way)
    meant = difflib.get_close_matches(str(key), known, n=1)
    right = f"is {_path_of((*way, meant[0]))} meant?" if meant else f"known: {', '.join(known)}"
    return f"unknown {kind}; {right}"


def _tables(value: object) -> bool:
    return isinstance(value, list) and bool(value) and all(isinstance(each, dict) for each in value)


def _keys_at(schema: type[BaseModel], way: Sequence[int | str]) -> list[str]:
    """The keys of the table at the end of ``way``."""
    for part in way:
        if isinstance(part, str):
            annotation = schema.model_fields[part].annotation
            (schema,) = (
                choice
                for choice in (annotation, *get_args(annotation))
                if isinstance(choice, type) and issubclass(choice, BaseModel)
            )
    return list(schema.model_fields)


def _anchored(config: Config, folder: Path) -> Config:
    """Relative paths are meant from the configuration file's folder."""

    tls = ("ca_file", "cert_file", "key_file")
    servers = [anchored(server, folder, *tls) for server in config.triton]
    mqtt = None if config.mqtt is None else anchored(config.mqtt, folder, *tls, "password_file")
    models = [_with_profiles_in(folder, model) for model in config.model]
    shares = None if config.state.shares is None else folder / config.state.shares
    there_too = {"directory": folder / config.state.directory, "shares": shares}
    state = State.model_validate({**config.state.model_dump(), **there_too})
    return config.model_copy(
        update={"model": models, "state": state, "triton": servers, "mqtt": mqtt}
    )


def _with_profiles_in(folder: Path, model: Model) -> Model:
    profile = model.profile
    if profile is None:
        return model
    there = [folder / p for p in profile] if isinstance(profile, list) else folder / profile
    return model.model_copy(update={"profile": there})


def parse_config(text: str, *, source: str, folder: Path | None = None) -> Config:
    """Check ``text`` (TOML) and return it as a :class:`Config`; raise :class:`ConfigError` with
    every problem found."""
    config = checked(Config, parsed(text, source), source)
    try:
        return _anchored(config, folder) if folder is not None else config
    except ValidationError as error:
        raise ConfigError(
            source, [f"state.{_said(problem, State)}" for problem in error.errors()]
        ) from error


def load_config(path: Path) -> Config:
    """Read and check the file; raise :class:`ConfigError` naming every problem."""
    return parse_config(text_of(path), source=str(path), folder=path.resolve().parent)


def text_of(path: Path) -> str:
    """What is in the file. Raises :class:`ConfigError`."""
    try:
        return path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(str(path), [f"cannot be read: {error}"]) from error


def parsed(text: str, source: str) -> dict[str, Any]:
    """``text`` as TOML. Raises :class:`ConfigError`."""
    try:
        return tomllib.loads(text)
    except (ValueError, RecursionError) as error:  # figures of any length, tables of any depth
        raise ConfigError(source, [f"not TOML: {error}"]) from error


def checked(schema: type[Checked], data: Mapping[str, Any], source: str) -> Checked:
    """``data`` as a ``schema``; raise :class:`ConfigError` with every problem found."""
    try:
        # as JSON, for there a path may be text and a number may not
        return schema.model_validate_json(json.dumps(data, default=str), strict=True)
    except ValidationError as error:
        raise ConfigError(source, [_said(each, schema) for each in error.errors()]) from error


def anchored(section: Anchored, folder: Path, *names: str) -> Anchored:
    """The section with those of its paths that are relative taken from ``folder``."""
    paths = {name: getattr(section, name) for name in names}
    there = {name: folder / path for name, path in paths.items() if path is not None}
    return section.model_copy(update=there)
