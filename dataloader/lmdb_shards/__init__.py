"""LMDB files in any layout to structures."""
