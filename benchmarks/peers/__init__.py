"""Who is measured: one file each, with one interface (peer.py)."""
