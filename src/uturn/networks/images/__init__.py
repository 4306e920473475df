"""Diffusion models and classifiers of images, from files of other libraries and from
user-defined functions.
"""
