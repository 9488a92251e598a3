"""Tests of generate.py and judge.py."""
