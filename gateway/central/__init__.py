"""The reference central server: a program of its own (the extra ``central``) that the command line imports."""
