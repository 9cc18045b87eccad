"""The demo: igniterd moving a real Triton on one or two emulated GPUs, shown in the terminal and as
a page.

``scenario`` says what is played, ``environment`` starts the programs, ``runner`` plays the phases,
``recording`` is all that was seen, ``measure`` judges it, and ``terminal``, ``timeline`` (with
``lanes`` and ``layout``) and ``page`` show it.
"""
