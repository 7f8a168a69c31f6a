"""Peers of the engine, each run by its own interpreter: ``run.py`` is the program, the other files one peer each.

They import nothing of Helix and nothing that the peer does not bring along.
"""
