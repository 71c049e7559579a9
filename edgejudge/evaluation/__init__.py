"""Judges measured: recipes, loaders, metrics and the page that shows them.

Takes recorded outputs or a judge and a data set; gives figures with their N and interval. Needs the
extra `eval`. Only what measures or calibrates imports it; what judges does not.
"""
