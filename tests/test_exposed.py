from pathlib import Path

import pytest

from igniterd.config import Config, parse_config
from igniterd.exposed import exposed

MODEL = '[[model]]\nname = "a"\nslo_p99_ms = 10\n'


def said(text: str, path: Path | None = None) -> list[str]:
    return list(exposed(read(text), path))


def read(text: str) -> Config:
    return parse_config(f"{text}\n{MODEL}", source="x")


HEADER = "header = { key = 's3cret' }"


@pytest.mark.parametrize(
    ("text", "about"),
    [
        (f'[[triton]]\nurl = "gpu-b:8001"\n{HEADER}', "header goes unencrypted to gpu-b"),
        (f'[[triton]]\nhttp_url = "http://gpu-b"\n{HEADER}', "what http_url sends to gpu-b"),
        ('[[triton]]\nmetrics_url = "http://u:s3cret@gpu-b/m"', "what metrics_url sends to gpu-b"),
        ('[[triton]]\nmetrics_url = "http://gpu-b/m?t=s3cret"', "what metrics_url sends to gpu-b"),
        (
            '[mqtt]\nurl = "mqtt://broker"\nusername = "a"\npassword_file = "p"',
            "the password goes unencrypted to broker: use mqtts",
        ),
    ],
)
def test_a_secret_that_leaves_the_machine_in_the_clear_is_said(text: str, about: str) -> None:
    (sentence,) = said(text)
    assert about in sentence and "s3cret" not in sentence


@pytest.mark.parametrize(
    "text",
    [
        f'[[triton]]\nurl = "localhost:8001"\n{HEADER}',
        f'[[triton]]\nurl = "gpu-b:8001"\nca_file = "ca.pem"\n{HEADER}',
        '[[triton]]\nurl = "gpu-b:8001"\nmetrics_url = "http://gpu-b:8002/metrics"',
        '[[triton]]\nmetrics_url = "https://u:p@gpu-b/metrics"',
        '[mqtt]\nurl = "mqtts://broker"\nusername = "a"\npassword_file = "p"',
        '[mqtt]\nurl = "mqtt://[::1]"\nusername = "a"\npassword_file = "p"',
        '[mqtt]\nurl = "mqtt://broker"',
    ],
)
def test_what_is_no_secret_or_does_not_leave_is_not_said(text: str) -> None:
    assert said(text) == []


def test_files_with_secrets_that_every_user_can_read_are_said(tmp_path: Path) -> None:
    password, told = tmp_path / "password", tmp_path / "igniterd.toml"
    password.write_text("s3cret")
    told.write_text("")
    text = (
        f'[[triton]]\n{HEADER}\n[mqtt]\nurl = "mqtts://b"\nusername = "a"\npassword_file = '
        f'"{password}"'
    )
    for mode, sentences in ((0o644, 2), (0o640, 0), (0o600, 0)):
        password.chmod(mode)
        told.chmod(mode)
        assert len(said(text, told)) == sentences
    told.chmod(0o644)
    assert said("", told) == []
