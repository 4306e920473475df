"""Language models and text encoders, from files of other libraries and from user-defined
functions.
"""
