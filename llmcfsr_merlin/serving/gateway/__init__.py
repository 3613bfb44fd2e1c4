"""A JSON gateway in front of Triton: raw ids in, items with titles out, and limits before Triton sees anything.

Everything here needs the extra `gateway`; nothing else of the package imports it.
"""
