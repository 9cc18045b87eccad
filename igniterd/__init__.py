"""igniterd keeps latency SLOs on shared GPUs."""

__version__ = "0.1.0"
