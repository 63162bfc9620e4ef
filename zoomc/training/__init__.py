"""The demo model: draws its pictures, trains a small inpainting pipeline on them, assembles it.

``python -m zoomc.training --out DIR`` runs everything and resumes where it was cut.
"""
