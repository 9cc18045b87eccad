"""Published strategies that igniterd is compared with."""
