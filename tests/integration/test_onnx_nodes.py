"""A sample of the ``onnx`` package's own backend node tests through hosted models on a real
tritonserver; ``bench/onnx_nodes.py`` runs all of them."""

from __future__ import annotations

from pathlib import Path

import pytest

from bench.onnx_nodes import prepared, run
from igniterd.lab.programs import programs

pytestmark = pytest.mark.integration

SAMPLE = [
    "abs",
    "add",
    "and2d",
    "argmax_default_axis_example",
    "averagepool_2d_default",
    "batchnorm_example",
    "bitshift_left_uint8",
    "cast_FLOAT_to_DOUBLE",
    "cast_FLOAT_to_FLOAT16",
    "cast_BFLOAT16_to_FLOAT",
    "cast_STRING_to_FLOAT",
    "clip",
    "compress_0",
    "concat_2d_axis_0",
    "constantofshape_int_shape_zero",
    "conv_with_strides_padding",
    "cumsum_1d",
    "dropout_default_mask",
    "dynamicquantizelinear",
    "einsum_sum",
    "equal_string",
    "gather_elements_0",
    "gemm_all_attributes",
    "globalmaxpool",
    "greater",
    "if_skipped",
    "isinf_float16",
    "layer_normalization_4d_axis2",
    "less_equal",
    "loop11",
    "lstm_defaults",
    "matmul_3d",
    "max_int16",
    "min_uint64",
    "mod_mixed_sign_int8",
    "nonzero_example",
    "onehot_with_axis",
    "pow_types_float32_int64",
    "quantizelinear",
    "reduce_max_bool_inputs",
    "reshape_zero_dim",
    "scatter_elements_with_axis",
    "size",
    "split_variable_parts_2d_opset18",
    "string_split_basic",
    "top_k",
    "unique_sorted_with_axis",
    "where_example",
]


async def test_answers_are_those_of_onnx_runtime_called_directly(tmp_path: Path) -> None:
    cases, _ = prepared(tmp_path, [f"test_{name}" for name in SAMPLE])
    assert programs.engines_ready()
    assert len(cases) >= 40
    results = await run(cases, tmp_path)
    assert {r.name: r.why for r in results if r.why} == {}
    assert len(results) == len(cases)
