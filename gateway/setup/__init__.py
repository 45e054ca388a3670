"""``gateway setup``: from a machine with scanners and a relay board to a gate that runs.

``dialogue`` decides what is asked next and what comes of it, ``setupcode`` what a scan of the set-up code
tells of a scanner, ``compose`` the text of the configuration: all without a device, a disk or a terminal.
``scanning``, ``clicking``, ``asking``, ``units`` and ``writing`` are the hands, ``run`` puts them together.
"""
