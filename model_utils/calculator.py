"""The calculator for ASE, under a short name: ``from model_utils.calculator import Calculator``."""

from model_utils.simulation.calculator import Calculator

__all__ = ["Calculator"]
