"""Honest files of every odd kind, and what each must look like.

`colours` is arithmetic: colour spaces by their published primaries and curves. `kinds` makes one file of each kind from
a photograph, and a reference for it by that arithmetic or by decoders that are not Pillow's. `difference` compares as
eyes would (CIEDE2000). `sheet` draws it all, so that a person can look: `python -m tests.fidelity.sheet docs`.
"""
