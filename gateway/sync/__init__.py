"""Talking to the central: pure protocol and, with the next step, the courier itself."""
