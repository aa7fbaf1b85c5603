"""Encoders, describers and grounders, and how a configuration names them."""
