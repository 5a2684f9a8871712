"""Encodings of weights in fewer bytes: what a packed file holds and what memory keeps.

`encoding` has the interface and 16-bit values, `rows` int8 and fp8, `nf4` four bits, `gguf` the
block types of GGUF files. Each expands by tensor arithmetic alone, on any device.
"""
