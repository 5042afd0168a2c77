"""Bridges to neighbouring packages; each is imported only where it is used."""
