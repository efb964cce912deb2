"""Apache Cassandra behind the engine port."""

from strongroom.engines.cassandra.engine import CassandraEngine

__all__ = ["CassandraEngine"]
