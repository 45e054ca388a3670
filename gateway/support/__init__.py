"""``gateway support-bundle``: what somebody far away needs to help, and nothing about visitors.

``scrub`` decides what may be said: it knows what is harmless and leaves out the rest, for nobody can list
what a code or a name may look like. ``machine`` and ``stores`` look, ``bundle`` packs.
"""
