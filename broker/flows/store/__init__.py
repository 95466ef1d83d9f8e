"""Where flow records stay: files (Parquet), ClickHouse, Kafka. What they take are segments of the spool."""
