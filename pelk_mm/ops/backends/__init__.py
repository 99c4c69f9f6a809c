"""The ways of computing a depthwise convolution: one file or folder each.

`pelk_mm.ops.choose` has the only list of them.
"""
