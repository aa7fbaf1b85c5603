"""Pools in, blends out: manifests, Parquet shards, atomic files."""
