"""Trains a converted network to compute what the network before did."""
