"""What igniterd says over MQTT: topics, envelopes and documents. Pure.

The documents are contracts. Their JSON Schemas are in ``igniterd/data/schemas``. A version is a
level of the topic: what breaks readers gets a new one, and keys may be added to the old one.
"""
