"""A run as a folder of shards that can be killed, resumed and ranked again."""
