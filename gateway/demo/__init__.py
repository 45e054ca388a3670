"""``gateway demo``: the whole system on this machine, without hardware or configuration."""
