"""Lanes and the boards that move them."""
