"""The InfluxDB 1.x engine: shards through the backup port, each TSM file an entry; deleted points never come back unseen."""

from strongroom.engines.influxdb.engine import InfluxEngine

__all__ = ["InfluxEngine"]
