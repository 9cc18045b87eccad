"""Models of in-process backends, hosted in a process of their own through Triton's Python backend.

A model of ONNX Runtime, PyTorch or TensorRT runs inside tritonserver, so it can have no MPS share
of its own. Loaded with ``backend: "python"`` and the two files of :mod:`igniterd.engines.stub` it
runs in a process of its own, from its own files at their place in the repository. Everything here
is pure: configurations in, configurations and files out.
"""
