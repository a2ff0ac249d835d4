"""Storages whose entities share coordinates, round them or prune them."""
