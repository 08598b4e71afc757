"""Interchangeable kernels: each computes a Problem, none knows another.

reference.py is the definition, in NumPy and float64: read it first.
"""
