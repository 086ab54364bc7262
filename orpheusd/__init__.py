"""Orpheus keeps AI agents warm: the supervisor daemon."""

__version__ = "0.1.0"
