"""What the managers' charts show: counted where something changed, provably equal to counting everything."""
