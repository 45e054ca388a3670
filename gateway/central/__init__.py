"""The reference central server (the extra ``central``): a program of its own; the command line imports it."""
