"""The network that fuses the experts in the anchor's space, and its objectives."""
