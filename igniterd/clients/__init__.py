"""The only doors outward: Triton, NVML, MPS control, MQTT, the admin endpoint and systemd.

Every call has a deadline; what comes back is a plain record of :mod:`igniterd.records` or an error
of :mod:`igniterd.errors`.
"""
