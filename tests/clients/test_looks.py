import os
from pathlib import Path

from tritonclient.grpc import model_config_pb2

from igniterd.clients.environments import Own, share_path
from igniterd.clients.looks import Looks


def of(environment: str | None) -> model_config_pb2.ModelConfig:
    message = model_config_pb2.ModelConfig(name="m", backend="python")
    if environment is not None:
        message.parameters["EXECUTION_ENV_PATH"].string_value = environment
    return message


async def test_only_a_models_own_environment_is_looked_at(tmp_path: Path) -> None:
    looks = Looks(str(tmp_path / "shares"), 5.0)
    (tmp_path / "pack").touch()
    assert await looks.at(of(str(tmp_path / "pack"))) is Own.ARCHIVE
    assert await looks.at(of(None)) is Own.UNSEEN
    shared = of(share_path(str(tmp_path / "shares"), 0.3))
    assert await looks.at(shared) is Own.UNSEEN
    shared.parameters["IGNITERD_BASE_ENV"].string_value = str(tmp_path / "pack")
    assert await looks.at(shared) is Own.ARCHIVE


async def test_a_look_that_hangs_is_not_waited_for_and_not_tried_again(tmp_path: Path) -> None:
    looks, activate = Looks(str(tmp_path / "shares"), 0.2), tmp_path / "env" / "bin" / "activate"
    activate.parent.mkdir(parents=True)
    os.mkfifo(activate)  # opening it waits for a writer, as a dead mount does
    assert await looks.at(of(str(tmp_path / "env"))) is Own.UNSEEN
    os.close(os.open(activate, os.O_WRONLY))  # let the thread go
    activate.unlink()
    activate.write_text("")
    assert await looks.at(of(str(tmp_path / "env"))) is Own.UNSEEN
    assert await Looks(str(tmp_path / "shares"), 5.0).at(of(str(tmp_path / "env"))) is Own.FOLDER
