from pathlib import Path

import pytest

from igniterd.config import Model, load_config, parse_config
from igniterd.errors import ConfigError

GOOD = """
[host]
name = "gpu-a"
[[model]]
name = "resnet50"
slo_p99_ms = 25.0
profile = "profiles/resnet50.json"
"""


def problems(text: str) -> str:
    with pytest.raises(ConfigError) as caught:
        parse_config(text, source="igniterd.toml")
    return "\n".join(caught.value.problems)


def test_defaults_and_paths_from_the_files_folder(tmp_path: Path) -> None:
    file = tmp_path / "igniterd.toml"
    file.write_text(GOOD)
    config = load_config(file)
    assert config.host.name == "gpu-a"
    assert config.triton[0].url == "127.0.0.1:8001"
    assert config.model[0].profile == tmp_path / "profiles/resnet50.json"
    assert config.state.directory == Path("/var/lib/igniterd")
    assert config.metrics.address == ("127.0.0.1", 9409)
    assert config.mqtt is None


def test_shares_are_in_the_state_folder_unless_named(tmp_path: Path) -> None:
    file = tmp_path / "igniterd.toml"
    file.write_text(GOOD)
    assert load_config(file).shares == Path("/var/lib/igniterd/shares")
    file.write_text(f'[state]\ndirectory = "state"\n{GOOD}')
    assert load_config(file).shares == tmp_path / "state" / "shares"
    file.write_text(f'[state]\nshares = "given"\n{GOOD}')
    assert load_config(file).shares == tmp_path / "given"
    assert "state.shares: should have only letters, digits and" in problems(
        f'[state]\nshares = "/a b"\n{GOOD}'
    )


def test_what_reaches_the_models_of_a_triton(tmp_path: Path) -> None:
    config = parse_config(
        f'[[triton]]\npython = "/opt/bin/python3"\nshim_backend = "igniterd_python"\n{GOOD}',
        source="x",
    )
    assert (config.triton[0].python, config.triton[0].shim_backend) == (
        Path("/opt/bin/python3"),
        "igniterd_python",
    )
    assert "triton[0].python: should be the whole path" in problems(
        f'[[triton]]\npython = "python3"\n{GOOD}'
    )
    assert "triton[0].shim_backend: " in problems(f'[[triton]]\nshim_backend = "../x"\n{GOOD}')


def test_files_of_tls_are_in_the_files_folder_and_come_together(tmp_path: Path) -> None:
    file = tmp_path / "igniterd.toml"
    tls = 'ca_file = "ca.pem"\ncert_file = "/etc/c.pem"\nkey_file = "c.key"\n'
    file.write_text(
        f'[[triton]]\n{tls}[mqtt]\nurl = "mqtts://broker"\nusername = "gpu-a"\npassword_file = '
        f'"secret"\n{GOOD}'
    )
    config = load_config(file)
    server = config.triton[0]
    assert (server.ca_file, server.cert_file, server.key_file) == (
        tmp_path / "ca.pem",
        Path("/etc/c.pem"),
        tmp_path / "c.key",
    )
    assert config.mqtt is not None
    assert (config.mqtt.password_file, config.mqtt.ca_file) == (tmp_path / "secret", None)
    for half in (tls.replace("ca_file", "# "), tls.replace("cert_file", "# ")):
        assert "triton[0]: cert_file and key_file go together" in problems(
            f"[[triton]]\n{half}{GOOD}"
        )


def test_every_problem_is_named_at_once() -> None:
    said = problems(
        """
[loop]
interval_s = 1.0
io_timeout_s = 0.6
sped = 3
[[triton]]
url = "localhost"
[[model]]
name = "a"
slo_p99_ms = -4
"""
    )
    assert "loop.sped: unknown key; known: interval_s, mode, io_timeout_s" in said
    assert (
        "triton[0].url: should be host:port of Triton's gRPC endpoint, such as 127.0.0.1:8001 "
        "(found 'localhost')" in said
    )
    assert "model[0].slo_p99_ms: Input should be greater than 0 (found -4)" in said


def test_rule_between_fields() -> None:
    assert "loop: 2 * io_timeout_s (1.2) must be below interval_s (1)" in problems(
        "[loop]\nio_timeout_s = 0.6\n" + GOOD
    )
    assert "min_share (0.9) must not be above max_share (0.5)" in problems(
        GOOD + "min_share = 0.9\nmax_share = 0.5\n"
    )


def test_references_and_duplicates() -> None:
    said = problems(GOOD + 'triton = "other"\n[[model]]\nname = "resnet50"\nslo_p99_ms = 1\n')
    assert "model.name 'resnet50' is given twice" not in said, "it is on another Triton"
    assert "model 'resnet50': triton 'other' is not one of main" in said


@pytest.mark.parametrize("name", ["modèle @2,b", "_private", "a+b (copy)"])
def test_a_model_is_called_as_triton_calls_it(name: str) -> None:
    assert (
        parse_config(GOOD.replace('"resnet50"', f'"{name}"'), source="test").model[0].name == name
    )


@pytest.mark.parametrize("name", ["a/b", "..", " a", "a\\u0007", ""])
def test_a_name_that_no_folder_of_a_repository_has_is_refused(name: str) -> None:
    assert "model[0].name: " in problems(GOOD.replace('"resnet50"', f'"{name}"'))


def test_a_state_folder_that_a_shell_would_split_is_refused(tmp_path: Path) -> None:
    assert "state.directory: should have only letters" in problems(
        GOOD + '[state]\ndirectory = "/var/lib/my shares"\n'
    )
    folder = tmp_path / "a b"
    folder.mkdir()
    (folder / "igniterd.toml").write_text(GOOD + '[state]\ndirectory = "state"\n')
    with pytest.raises(ConfigError, match=r"state\.directory: should have only letters"):
        load_config(folder / "igniterd.toml")


def test_missing_models_and_broken_toml() -> None:
    assert problems("[host]\nname = 'a'\n") == "model: missing"
    assert problems("[host\n").startswith("not TOML:")


def test_unreadable_file(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="cannot be read"):
        load_config(tmp_path / "none.toml")


def test_a_host_that_is_called_as_a_level_of_the_topics_is_refused() -> None:
    model = '[[model]]\nname = "a"\nslo_p99_ms = 10\n'
    assert problems(f"[host]\nname = 'profile'\n{model}") == (
        "host: name 'profile' stands for profiles in topics: give this host another name"
    )


@pytest.mark.parametrize(
    ("more", "field"),
    [
        ("[loop]\ninterval_s = '1'", "loop.interval_s"),
        ("[loop]\ninterval_s = true", "loop.interval_s"),
        ("[mps]\nenabled = 'yes'", "mps.enabled"),
        ("[decide]\nmax_reloads_per_hour = 2.5", "decide.max_reloads_per_hour"),
        ("[decide]\nlevel = nan", "decide.level"),
        ("[decide]\nhold_s = inf", "decide.hold_s"),
        ("[decide]\ndead_band = nan", "decide.dead_band"),
        ("[host]\nname = 5", "host.name"),
        ("[state]\ndirectory = 5", "state.directory"),
        ("[mqtt]\nurl = 'mqtt://broker:many'", "mqtt.url"),
        ("[mqtt]\nurl = 'mqtt://me:secret@broker'", "mqtt.url"),
        ("[[triton]]\nheader = { 'Bad Key' = 'x' }", "triton[0].header"),
        ("[[triton]]\nheader = { key = 'ü' }", "triton[0].header"),
        ('[[triton]]\nheader = { key = "a\\nb" }', "triton[0].header"),
        ("[[triton]]\nmetrics_url = '127.0.0.1:8002'", "triton[0].metrics_url"),
        ("[[triton]]\nmetrics_url = 'http://[::1/metrics'", "triton[0].metrics_url"),
    ],
)
def test_a_value_of_another_kind_is_refused(more: str, field: str) -> None:
    model = '[[model]]\nname = "a"\nslo_p99_ms = 10\n'
    assert problems(f"{more}\n{model}").startswith(f"{field}: ")


def test_no_metrics_page() -> None:
    model = '[[model]]\nname = "a"\nslo_p99_ms = 10\n'
    assert (
        parse_config(f'[[triton]]\nmetrics_url = ""\n{model}', source="x").triton[0].metrics_url
        is None
    )


def test_figures_and_tables_without_end_are_no_toml() -> None:
    assert "not TOML" in problems(f"a = {'1' * 5000}")
    assert "not TOML" in problems(f"a = {'[' * 100_000}")


def test_processes_of_their_own_and_what_they_need() -> None:
    text = (
        GOOD + 'process = "own"\n[engines]\nenvironment = "/opt/engines"\n[[triton]]\nrepository = '
        '["/models"]\n'
    )
    config = parse_config(text, source="igniterd.toml")
    assert (config.model[0].process, config.engines.environment, config.triton[0].repository) == (
        "own",
        "/opt/engines",
        ["/models"],
    )
    said = problems(
        GOOD
        + 'process = "mine"\n[engines]\nenvironment = "/opt/my engines"\n[[triton]]\nrepository '
        '= ["models"]\n'
    )
    assert "model[0].process: Input should be 'server' or 'own' (found 'mine')" in said
    assert "engines.environment: should be a path from the root with only letters, digits" in said
    assert (
        "triton[0].repository: 'models': should be paths from the root, as the server sees them"
        in said
    )


@pytest.mark.parametrize(
    "more",
    [
        "[[triton]]\nheader = { key = 53219 }",
        "[[triton]]\nheader = { key = true, other = 53219.5 }",
        "[[triton]]\nheader = 'Bearer 53219'",
        "[[triton]]\nheader = { 'key: 53219' = '' }",
        "[[triton]]\nmetrics_url = 'ftp://me:53219@host/metrics'",
        "[[triton]]\nmetrics_url = 'host/metrics?token=53219'",
        "[[triton]]\nhttp_url = 'http://me:53219@'",
        "[[triton]]\nurl = 'me:53219@host:8001'",
        "[mqtt]\nurl = 'mqtt://me:53219@broker'",
        "[mqtt]\nurl = 'mqtt://broker?password=53219'",
        "[mqtt]\nurl = 'mqtt://broker'\npassword = 53219",
        "[mqtt]\nurl = 'mqtt://broker'\nusername = 'a'\npassword_file = 53219",
    ],
)
def test_no_secret_is_repeated_in_what_is_said_of_it(more: str) -> None:
    said = problems(f'{more}\n[[model]]\nname = "a"\nslo_p99_ms = 10\n')
    assert said and "53219" not in said


@pytest.mark.parametrize("half", ["username = 'a'", "password_file = 'p'"])
def test_a_username_and_a_password_go_together(half: str) -> None:
    said = problems(f"[mqtt]\nurl = 'mqtt://broker'\n{half}\n{GOOD}")
    assert said.startswith("mqtt: username and password_file go together")


GPUS = '[[triton]]\ngpus = ["GPU-0a", "MIG-0b"]\n'


def test_gpus_of_a_triton_are_uuids_in_its_own_order() -> None:
    assert parse_config(GPUS + GOOD, source="x").triton[0].gpus == ["GPU-0a", "MIG-0b"]
    shared = f"{GPUS}name = 'a'\n{GPUS}name = 'b'\n{GOOD}triton = 'a'\n"
    assert [t.gpus for t in parse_config(shared, source="x").triton] == [["GPU-0a", "MIG-0b"]] * 2
    assert problems(GPUS.replace("MIG-0b", "GPU-0a") + GOOD) == (
        "triton[0].gpus: GPU-0a: given twice; a server has one number for each of its GPUs"
    )


@pytest.mark.parametrize("uuid", ["", "0", "GPU-", "gpu-0a", "GPU-0a GPU-0b", " GPU-0a", "GPU-ü"])
def test_what_is_no_uuid_is_refused(uuid: str) -> None:
    assert problems(GPUS.replace("MIG-0b", uuid) + GOOD) == (
        f"triton[0].gpus: {uuid!r}: should be UUIDs as nvidia-smi -L shows them, GPU-… or MIG-…"
    )


@pytest.mark.parametrize("gpu", ["0", "63", '"GPU-0a"', '"MIG-GPU-0a/1/0"'])
def test_the_gpu_of_a_model_is_a_number_or_a_uuid(gpu: str) -> None:
    model = parse_config(f"{GOOD}gpu = {gpu}\n", source="x").model[0]
    assert model.gpu == (int(gpu) if gpu.isdecimal() else gpu.strip('"'))


@pytest.mark.parametrize("gpu", ["-1", "64", "1.0", "true", '"1"', '"A100"', "[0]"])
def test_another_gpu_of_a_model_is_refused(gpu: str) -> None:
    said = problems(f"{GOOD}gpu = {gpu}\n")
    assert said.startswith(
        "model[0].gpu: should be a device number of its Triton, 0 to 63, or a UUID as "
    )
    assert "\n" not in said


@pytest.mark.parametrize("gpu", ["2", '"GPU-0c"'])
def test_a_model_on_a_gpu_that_its_triton_does_not_have_is_refused(gpu: str) -> None:
    said = problems(f"{GPUS}{GOOD}gpu = {gpu}\n")
    assert f"model 'resnet50': gpu {gpu.replace(chr(34), chr(39))} is not one of the GPUs" in said
    assert said.endswith("of triton 'main': 0 GPU-0a, 1 MIG-0b")


@pytest.mark.parametrize("gpu", ["1", '"MIG-0b"'])
def test_a_model_on_a_gpu_of_its_triton_is_taken(gpu: str) -> None:
    assert parse_config(f"{GPUS}{GOOD}gpu = {gpu}\n", source="x").model[0].gpu is not None


def test_a_copy_with_other_models_knows_those_by_name() -> None:
    given = parse_config(GOOD, source="x")
    (name,) = given.by_name()
    other = given.model[0].model_copy(update={"slo_p99_ms": 77.0})
    assert given.model_copy(update={"model": [other]}).by_name()[name].slo_p99_ms == 77.0
    assert parse_config(GOOD, source="x") == given, "asked or not, they are equal"


def test_profiles_of_a_model_are_in_the_files_folder(tmp_path: Path) -> None:
    one = 'profile = "profiles/resnet50.json"'

    def model(profile: str) -> Model:
        text = GOOD.replace(one, profile)
        return parse_config(text, source="x", folder=tmp_path).model[0]

    assert model("").profiles == ()
    assert model(one).profiles == (tmp_path / "profiles/resnet50.json",)
    several = model('profile = ["a.json", "/b.json"]')
    assert several.profiles == (tmp_path / "a.json", Path("/b.json"))
    assert several.profile == [tmp_path / "a.json", Path("/b.json")]


@pytest.mark.parametrize("profile", ["5", "[]", "[5]", '["a.json", true]', "{ a = 'b' }"])
def test_a_profile_that_is_no_path_is_refused(profile: str) -> None:
    text = GOOD.replace('"profiles/resnet50.json"', profile)
    said = problems(text)
    assert said.startswith("model[0].profile: should be the path of a profile, or a list of")
    assert "\n" not in said


@pytest.mark.parametrize("share", ["0", "1.5", "nan", '"all"'])
def test_a_reserve_that_is_no_share_is_refused(share: str) -> None:
    assert problems(f"{GOOD}reserve_share = {share}\n").startswith("model[0].reserve_share: ")


EVERY_KEY = """
[host]
name = "gpu-z"
cluster = "blue"
[[triton]]
name = "other"
url = "10.0.0.1:9001"
metrics_url = "http://10.0.0.1:9002/metrics"
http_url = "http://10.0.0.1:9000"
header = { token = "t" }
ca_file = "/etc/ca"
cert_file = "/etc/cert"
key_file = "/etc/key"
reload_timeout_s = 61.0
python = "/opt/python3"
shim_backend = "shim"
repository = ["/models"]
gpus = ["GPU-0a", "GPU-0b"]
[gpu]
source = "none"
[mps]
enabled = false
control = "/opt/mps"
pipe_directory = "/tmp/pipe"
interval_s = 31.0
prove_within_s = 32.0
[loop]
interval_s = 2.0
mode = "advise"
io_timeout_s = 0.5
[decide]
level = 0.9
rate_level = 0.8
slo_margin = 0.2
dead_band = 0.1
warmup_s = 9.0
urgent_hold_s = 5.0
hold_s = 61.0
watch_s = 13.0
respect_s = 601.0
max_reloads_per_hour = 100
consolidate = true
moves = false
[metrics]
listen = "127.0.0.1:9410"
hosts = ["gpu-a.example"]
[mqtt]
url = "mqtts://broker"
username = "u"
password_file = "/etc/password"
ca_file = "/etc/ca"
cert_file = "/etc/cert"
key_file = "/etc/key"
[state]
directory = "/var/lib/other"
history_mb = 7
shares = "/opt/shares"
[engines]
environment = "/opt/engines"
[[model]]
name = "m"
triton = "other"
slo_p99_ms = 20.0
priority = 2
profile = "/etc/m.json"
profile_model = "n"
gpu = 1
min_share = 0.1
max_share = 0.9
reserve_share = 0.3
max_batch_size = 4
client_batch = 2
process = "own"
served_by = "cluster"
"""


def test_every_key_of_a_file_reaches_the_daemon() -> None:
    """Also where relative paths are anchored: no section may fall back to its defaults there."""
    folder = Path("/etc/igniterd")
    given = parse_config(EVERY_KEY, source="x")
    assert parse_config(EVERY_KEY, source="x", folder=folder) == given
    plain = parse_config(GOOD, source="x").model_dump()
    for section, default in plain.items():
        found = given.model_dump()[section]
        of, by = (found[0], default[0]) if isinstance(found, list) else (found, default)
        for key in of:
            assert by is None or of[key] != by[key], f"{section}.{key} is at its default"
