"""Devices: what each kind of device can hold and compute, in which sizes, and whether this one does."""
