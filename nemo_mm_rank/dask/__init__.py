"""The same steps on Dask clusters and collections."""
