"""The stores: what the central said (snapshot) and what happened here (ledger)."""
