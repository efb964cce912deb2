"""Redis: the whole instance as one sorted RDB, taken and given back over the replication protocol."""

from strongroom.engines.redis.engine import RedisEngine

__all__ = ["RedisEngine"]
