"""Geometry of embedding spaces, measured on pairs that no fit has seen."""
