"""The reference central server: a program of its own (the extra ``central``), imported by the command line."""
