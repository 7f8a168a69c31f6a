"""Devices: what each kind of device can hold and compute, in which sizes, and checks that this device does."""
