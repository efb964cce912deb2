"""The MongoDB engine: exact at one point in time beside running writers, with the built-in roles only."""

from strongroom.engines.mongodb.engine import MongoEngine

__all__ = ["MongoEngine"]
