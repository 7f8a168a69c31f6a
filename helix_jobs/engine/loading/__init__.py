"""Loading: from a model's name to decoders on a device; files are checked before a weight is read."""
