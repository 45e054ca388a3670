"""The reference central server (the extra ``central``): a program of its own, imported by the command line."""
