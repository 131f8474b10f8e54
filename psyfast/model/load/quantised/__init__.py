"""Quantised safetensors: values made of their codes and scales a few rows at a time, as a layer is read."""
