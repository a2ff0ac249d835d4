"""Storages that share, round or prune coordinates."""
