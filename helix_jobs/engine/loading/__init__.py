"""Loading: from a model's name to decoders on a device; files are held to what they say before a weight is read."""
