"""The demo: igniterd moving a real Triton on an emulated GPU, shown in the terminal and as a page.

``scenario`` says what is played, ``environment`` starts the programs, ``runner`` plays the phases,
``recording`` is all that was seen, ``measure`` judges it, and ``terminal``, ``timeline`` and
``page`` show it.
"""
