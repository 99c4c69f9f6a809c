"""The version of the package, for its metadata and for notes in files."""

__version__ = '0.2.0'
