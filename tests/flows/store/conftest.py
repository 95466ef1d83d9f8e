from tests.flows.store.clickhouse_server import clickhouse
from tests.flows.store.kafka_cluster import cluster

__all__ = ("clickhouse", "cluster")
