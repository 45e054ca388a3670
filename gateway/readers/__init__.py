"""Input devices: pure decoders, and the one owner of an input fd."""
