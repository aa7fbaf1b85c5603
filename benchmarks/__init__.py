"""Figures the project holds itself to: each script prints one table, its peers side by side."""
