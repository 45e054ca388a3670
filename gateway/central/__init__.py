"""The reference central server (the extra ``central``). Only the command line imports it."""
