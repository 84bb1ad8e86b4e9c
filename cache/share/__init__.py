"""Stores elsewhere: locations, catalogues, push, pull, mirror, verify."""
