"""Rewrites that bring any model into the form the rest of the room reads; each pass is one file.

Every pass takes an ``onnx_ir.Model`` that belongs to the caller alone and changes it in place. None changes
a value that reaches an output, bit for bit.
"""
