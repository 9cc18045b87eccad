"""``igniterd profile``: measures models on a live Triton, alone and beside each other, into a
profile.

``inputs`` makes requests of a model's own shapes, ``drive`` keeps it busy with them, ``steady``
says when the mean is known, ``points`` and ``pairs`` know what is worth measuring and ``choice``
what is next, ``server`` changes and restores configurations, ``board`` asks the GPU, ``partial``
keeps what was measured, ``session`` is the order of it all.
"""
