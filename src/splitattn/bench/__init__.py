"""Measures how fast networks run on this machine, and compares that with its roofline."""
