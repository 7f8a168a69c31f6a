"""Devices: what each kind of device can hold and compute, and whether this one does."""
