"""What a source says happens, taken in as it happens: read, staged, carried out, kept until it is settled."""
