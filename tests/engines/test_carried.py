"""The owner's settings as the engine is told of them."""

from __future__ import annotations

from typing import Any

import pytest

from igniterd.engines.carried import carry_settings


def config(
    *,
    optimization: dict[str, Any] | None = None,
    groups: list[dict[str, Any]] | None = None,
    **parameters: str,
) -> dict[str, Any]:
    return {
        "name": "net",
        "optimization": optimization or {},
        "instance_group": groups or [],
        "parameters": {
            key.replace("__", "."): {"string_value": value} for key, value in parameters.items()
        },
    }


@pytest.mark.parametrize(
    ("level", "graph"), [(-1, "basic"), (0, "all"), (1, "extended"), (2, "none")]
)
def test_graph_level(level: int, graph: str) -> None:
    assert (
        carry_settings("onnxruntime", config(optimization={"graph": {"level": level}})).options[
            "graph"
        ]
        == graph
    )


def test_threads_modes_and_memory_of_onnx_runtime() -> None:
    found = carry_settings(
        "onnxruntime",
        config(
            intra_op_thread_count="2",
            inter_op_thread_count="3",
            execution_mode="1",
            enable_mem_arena="0",
            enable_mem_pattern="1",
            memory__enable_memory_arena_shrinkage="cpu:0",
            session__use_device_allocator_for_initializers="1",
        ),
    )
    assert found.notes == []
    assert found.options == {
        "graph": "all",
        "intra_op_threads": 2,
        "inter_op_threads": 3,
        "parallel": True,
        "mem_arena": False,
        "mem_pattern": True,
        "arena_shrinkage": "cpu:0",
        "session": {"session.use_device_allocator_for_initializers": "1"},
        "gpu_providers": [["CUDAExecutionProvider", {}]],
    }


def test_accelerators_and_the_older_way_of_options_for_cuda() -> None:
    given = {
        "gpu_execution_accelerator": [
            {
                "name": "tensorrt",
                "parameters": {
                    "precision_mode": "FP16",
                    "max_workspace_size_bytes": "1024",
                    "trt_engine_cache_enable": "1",
                },
            },
            {"name": "cuda", "parameters": {"use_ep_level_unified_stream": "1"}},
        ],
        "cpu_execution_accelerator": [{"name": "openvino"}, {"name": "magic"}],
    }
    found = carry_settings(
        "onnxruntime",
        config(
            optimization={"execution_accelerators": given},
            cudnn_conv_algo_search="1",
            gpu_mem_limit="99",
        ),
    )
    assert found.options["gpu_providers"] == [
        [
            "TensorrtExecutionProvider",
            {
                "trt_fp16_enable": "True",
                "trt_max_workspace_size": "1024",
                "trt_engine_cache_enable": "True",
            },
        ],
        [
            "CUDAExecutionProvider",
            {
                "cudnn_conv_algo_search": "HEURISTIC",
                "gpu_mem_limit": "99",
                "use_ep_level_unified_stream": "1",
            },
        ],
    ]
    assert found.options["cpu_providers"] == [["OpenVINOExecutionProvider", {}]]
    assert found.notes == ["execution accelerator magic: not one that is known for a CPU"]


def test_pytorch() -> None:
    found = carry_settings(
        "pytorch",
        config(
            INTRA_OP_THREAD_COUNT="2",
            INFERENCE_MODE="false",
            DISABLE_OPTIMIZED_EXECUTION="true",
            DISABLE_CUDNN="false",
            ENABLE_WEIGHT_SHARING="true",
        ),
    )
    assert found.options == {
        "intra_op_threads": 2,
        "inference_mode": False,
        "optimized_execution": False,
        "cudnn": True,
    }
    (note,) = found.notes
    assert note.startswith("parameter ENABLE_WEIGHT_SHARING")


def test_tensorrt_profiles_by_group() -> None:
    groups: list[dict[str, Any]] = [{"profile": ["2", "3"]}, {"name": "small", "profile": ["1"]}]
    found = carry_settings(
        "tensorrt", config(groups=groups, optimization={"cuda": {"graphs": True}})
    )
    assert found.options["profiles"] == {"net_0": "2", "small": "1"}
    assert [note.split(":")[0] for note in found.notes] == [
        "instance_group profile 2, 3",
        "optimization cuda graphs",
    ]


@pytest.mark.parametrize(
    ("engine", "parameters", "words"),
    [
        (
            "onnxruntime",
            {"intra_op_thread_count": "many"},
            "parameter intra_op_thread_count: 'many' should be a whole number; left out",
        ),
        (
            "onnxruntime",
            {"enable_mem_arena": "perhaps"},
            "parameter enable_mem_arena: 'perhaps' should be 0 or 1; left out",
        ),
        (
            "pytorch",
            {"INFERENCE_MODE": "x"},
            "parameter INFERENCE_MODE: 'x' should be true or false; left out",
        ),
    ],
)
def test_a_value_that_is_none_is_named(engine: str, parameters: dict[str, str], words: str) -> None:
    assert carry_settings(engine, config(**parameters)).notes == [words]


def test_libraries_of_operators() -> None:
    given = config() | {"model_operations": {"op_library_filename": ["/ops.so"]}}
    assert carry_settings("onnxruntime", given).options["libraries"] == ["/ops.so"]
    assert "libraries" not in carry_settings("pytorch", given).options
    assert carry_settings("pytorch", given).notes
