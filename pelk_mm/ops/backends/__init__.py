"""Backends of the depthwise convolutions."""
