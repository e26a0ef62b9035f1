"""Drives a running service with requests, and measures how fast, how large and how steady it is."""
