"""The reference central server: a separate program (the extra ``central``), imported by nothing but the command line."""
