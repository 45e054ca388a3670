"""The reference central server (extra ``central``), a program of its own: the command line alone imports it."""
