"""Strongroom: backups of databases that can be deleted exactly."""

__version__ = "0.2.0.dev0"
